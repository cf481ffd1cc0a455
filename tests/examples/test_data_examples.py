import importlib.util
import json
from collections import Counter
from types import ModuleType
from typing import Any

from slime_core.config.data import DataConfig
from slime_core.data.opening import open_stream
from slime_core.data.prompts import prompt_rows
from slime_core.data.user_source import UserSource, user_source
from slime_testing.chars import CharTokenizer
from slime_testing.workspace import ROOT
from slime_train.quickstart.task import write_task

EXAMPLES = ROOT / "examples"


def load(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_formats_are_streamed_with_their_weights_and_without_the_broken_rows(tmp_path):
    example = load("streaming_data/data")
    example.split(write_task(tmp_path, seed=0).train, tmp_path)
    sources = [f"{tmp_path}/sums.jsonl", f"{tmp_path}/sums.csv*0.5", f"{tmp_path}/sums@[:-50]*2"]
    data = DataConfig(
        prompt_data=tuple(sources),
        streaming_data=True,
        streaming_window=500,
        rollout_shuffle=True,
        data_error_policy="skip",
    )
    stream = open_stream(prompt_rows(data, CharTokenizer()), data, 1)
    taken = stream.take(len(stream) - len(example.BAD_LINES))
    assert stream.epoch == 0
    seen = Counter(group.samples[0].metadata["source"] for group in taken)
    assert seen == {sources[0]: 594, sources[1]: 297, sources[2]: 2 * (594 - 50)}
    assert all(eval(s.prompt[:-2]) == int(s.label) for group in taken for s in group.samples)
    assert stream.metrics()["rollout/data_left_out/not_utf8"] == 1


def curriculum() -> UserSource:
    spec = f"{EXAMPLES}/custom_data_source/curriculum.py:Curriculum"
    flat: dict[str, Any] = {"n_samples_per_prompt": 2, "buffer_filter_path": None}
    return user_source(spec, flat, None)


def test_the_curriculum_grows_takes_back_and_goes_on_after_a_restart():
    source = curriculum()
    for iteration in range(12):
        source.begin(iteration)
        groups = source.take(20)
        for group in groups:
            left, right = map(int, group.samples[0].prompt[0]["content"][:-2].split("+"))
            level = group.samples[0].metadata["level"]
            assert str(left + right) == group.samples[0].label
            assert left >= 10
            assert right >= 10
            assert max(left // 10 + right // 10, left % 10 + right % 10) <= max(2, level)
        assert max(g.samples[0].metadata["level"] for g in groups) == min(9, iteration + 1)
        source.ledger.train(groups[3:])
        source.give_back(groups[:3])
        source.settle()
    resumed = curriculum()
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    resumed.begin(12)
    source.begin(12)
    assert resumed.take(10) == source.take(10)
    assert len(resumed) == 0
    resumed.close()
