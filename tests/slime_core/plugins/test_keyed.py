import re
from pathlib import Path

import pytest
import torch
from slime_core.advantages.custom import custom_advantages, rollout_data
from slime_core.batch import PolicySignals, Ragged, Targets
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import PluginError
from slime_core.hooks.batch_functions import data_postprocess
from slime_core.plugins.functions import load_hook
from slime_core.plugins.keyed import Keyed
from slime_core.types import SampleGroup
from slime_testing import make_sample

PAGE = (Path(__file__).parents[3] / "docs" / "customize.md").read_text()


def documented(heading: str) -> set[str]:
    section = PAGE.partition(f"### {heading}\n")[2].partition("\n##")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def signals(batch):
    vectors = Ragged(torch.zeros(int(batch.response_lengths.sum())), batch.response_lengths)
    return PolicySignals(vectors, vectors, vectors, vectors)


def make_batch():
    samples = tuple(make_sample(2, rollout_id=i, rollout_log_probs=[-1.0, -1.0]) for i in range(2))
    return collate([SampleGroup(0, samples)], reward_key=None, advantage=AdvantageConfig())


def test_the_page_lists_what_rollout_data_holds():
    batch = make_batch()
    for_one_function = {"kl", "advantages", "returns"}
    held = set(rollout_data(batch, signals(batch))) | for_one_function
    assert documented("What `rollout_data` holds") == held


def test_the_example_of_the_page_sets_advantages(tmp_path):
    (code,) = re.findall(r"```python\n(def custom_advantages.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    batch = make_batch()
    run = custom_advantages(str(tmp_path / "mine.py"), {})
    kl = [torch.zeros(2)] * 2
    found = run(batch, signals(batch), kl)
    assert [row.tolist() for row in found["advantages"]] == [
        [reward] * 2 for reward in batch.rewards.tolist()
    ]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`(slime_core\.data\.\w+\.[a-z_]+)`", PAGE)))
)
def test_functions_that_the_page_names_are_there(path):
    assert callable(load_hook("dynamic_sampling_filter_path", path))


def test_a_key_that_is_not_there_tells_which_are(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(args, rollout_data):\n    rollout_data['advantage']\n"
    )
    batch = make_batch()
    run = custom_advantages(str(tmp_path / "mine.py"), {})
    with pytest.raises(
        PluginError, match=r"rollout_data has no 'advantage': in this run it has kl"
    ):
        run(batch, signals(batch), [torch.zeros(2)] * 2)
    (tmp_path / "post.py").write_text(
        "def post(args, rollout_id, rollout_data):\n    rollout_data['reward']\n"
    )
    postprocess = data_postprocess(str(tmp_path / "post.py"), {})
    with pytest.raises(PluginError, match=r"no 'reward' \(did you mean 'rewards'\?\)"):
        postprocess(0, batch, signals(batch), Targets(batch.loss_mask))


def test_missing_keys_are_key_errors_and_get_still_works():
    data = Keyed("batch", {"rewards": [1.0], "tokens": []})
    assert data.get("reward") is None
    assert "reward" not in data
    with pytest.raises(KeyError) as caught:
        data["reward"]
    assert str(caught.value) == (
        "batch has no 'reward' (did you mean 'rewards'?): in this run it has rewards, tokens"
    )
