from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slime_core.data.prompts import Prompt
from slime_core.data.stream import PromptStream
from slime_core.errors import PluginError, SlimeError
from slime_core.hooks.rollout_functions import (
    eval_function,
    eval_metrics,
    log_function,
    rollout_function,
)
from slime_core.types import Status

FLAT = {"rollout_batch_size": 2}

UPSTREAM = """
from slime_core.hooks.rollout_functions import RolloutFnEvalOutput, RolloutFnTrainOutput
from slime_core.types import Status

def generate_rollout(args, rollout_id, data_source, evaluation=False):
    if evaluation:
        row = {"rewards": [1.0, 0.0], "truncated": [False, True]}
        return RolloutFnEvalOutput({"sums": row}, {"eval/extra": 3})
    groups = data_source.get_samples(args.rollout_batch_size + 1)
    data_source.add_samples(groups[:1])
    for sample in (sample for group in groups[1:] for sample in group):
        sample.tokens, sample.response_length = [1, 2, 3], 2
        sample.status, sample.reward = Status.COMPLETED, float(rollout_id)
    return RolloutFnTrainOutput(groups[:0:-1], {"rollout/extra": 2})
"""


def stream() -> PromptStream:
    prompts = [Prompt(prompt=str(i), tokens=(1,)) for i in range(4)]
    return PromptStream(prompts, 2, shuffle=False, seed=0)


def written(path: Path, text: str) -> str:
    (path / "mine.py").write_text(text)
    return str(path / "mine.py")


def test_a_function_takes_prompts_gives_some_back_and_returns_groups(tmp_path: Path) -> None:
    source = stream()
    generate = rollout_function(written(tmp_path, UPSTREAM), FLAT)
    groups, metrics = generate(7, source)
    assert [group.group_index for group in groups] == [1, 2]
    assert {s.reward for g in groups for s in g.samples} == {7.0}
    assert {s.status for g in groups for s in g.samples} == {Status.COMPLETED}
    assert metrics["rollout/extra"] == 2.0
    assert metrics["rollout/prompts_given_out"] == metrics["rollout/prompts_buffered"] + sum(
        metrics[f"rollout/prompts_{part}"] for part in ("trained", "filtered")
    )
    assert source.take(1)[0].group_index == 0


def test_the_same_function_evaluates(tmp_path: Path) -> None:
    data, metrics = eval_function(written(tmp_path, UPSTREAM), FLAT)(7, stream())
    assert eval_metrics(data) == {"eval/sums": 0.5, "eval/sums-truncated_ratio": 0.5}
    assert metrics == {"eval/extra": 3.0}


def test_rewards_of_an_evaluation_may_be_arrays() -> None:
    row = {"rewards": np.array([0.0, 1.0]), "truncated": np.array([True, False])}
    assert eval_metrics({"s": row}) == {"eval/s": 0.5, "eval/s-truncated_ratio": 0.5}
    assert eval_metrics({"s": {"rewards": [], "truncated": []}}) == {"eval/s": 0.0}


def test_segments_of_one_execution_become_samples_of_its_group(tmp_path: Path) -> None:
    text = """
from copy import deepcopy
def generate_rollout(args, rollout_id, data_source):
    (first, second), = data_source.get_samples(1)
    return [[[first, deepcopy(first)], second]]
"""
    groups, _ = rollout_function(written(tmp_path, text), FLAT)(0, stream())
    assert [sample.rollout_id for sample in groups[0].samples] == [0, 0, 1]


BODIES = {
    "return None": "must return a list of groups",
    "return []": "must return a list of groups",
    "return [5]": "a group is a list of samples, not 5",
    "a, b = data_source.get_samples(2); return [[a[0], b[0]]]": "share one group_index",
    "(a, b), = data_source.get_samples(1); return [[[a, b]]]": "share a rollout_id",
    "(a, b), = data_source.get_samples(1); a.response_length = 9; return [[a, b]]": "9",
}


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_rollout_is_refused(tmp_path: Path, body: str) -> None:
    text = f"def generate_rollout(args, rollout_id, data_source):\n    {body}\n"
    generate = rollout_function(written(tmp_path, text), FLAT)
    with pytest.raises(SlimeError, match=BODIES[body]):
        generate(0, stream())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("async def generate_rollout(args, rollout_id, data_source): ...", "must not be async"),
        ("def generate_rollout(args): ...", "must be callable as f"),
    ],
)
def test_a_wrong_signature_is_found_when_loading(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        rollout_function(written(tmp_path, text), FLAT)


def test_a_log_function_says_whether_it_has_logged(tmp_path: Path) -> None:
    text = """
def log_rollout(rollout_id, args, samples, extra_metrics, rollout_time):
    assert args.rollout_batch_size == 2 and rollout_time == 1.5
    return rollout_id > 0
"""
    spec = written(tmp_path, text)
    log = log_function("custom_rollout_log_function_path", spec, FLAT)
    given: tuple[Any, ...] = ([], {}, 1.5)
    assert [log(0, *given), log(1, *given)] == [False, True]
    with pytest.raises(PluginError, match="must be callable as"):
        log_function("custom_eval_rollout_log_function_path", spec, FLAT)
