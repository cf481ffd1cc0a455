from dataclasses import dataclass, field
from typing import Any

import pytest
from slime_core.config.draft import DEFAULT, Draft, Facts
from slime_rewards import graders
from slime_rewards.config import COMPARING
from slime_rewards.rules import labels, rows_with_labels, whole_groups
from slime_testing.eval_sets import dataset

UNLABELLED = Facts(unlabelled=("--prompt-data p.jsonl", "--eval-config e.jsonl"))
SETTINGS = {
    "custom_rm_path": None,
    "rollout_function_path": None,
    "custom_generate_function_path": None,
    "rollout_sample_hook_path": (),
    "data_source_path": None,
    "eval_function_path": None,
    "debug_train_only": False,
    "loss_type": "policy_loss",
    "num_rollout": 3,
    "prompt_data": ("p.jsonl",),
    "rm_type": "math",
    "eval_datasets": (),
}


@dataclass
class EvalSet:
    path: str = "e.jsonl"
    rm_type: str | None = None
    custom_rm_path: str | None = None
    custom_generate_function_path: str | None = None
    metadata_overrides: dict[str, Any] = field(default_factory=dict)


def problems(**changes: Any) -> list[str]:
    draft = Draft()
    for name, value in {**SETTINGS, **changes}.items():
        draft.own.put(name, value, "command line" if name in changes else DEFAULT)
    labels(draft, UNLABELLED)
    return draft.problems


def test_prompts_without_labels_are_refused_where_labels_are_compared_with() -> None:
    (told,) = problems()
    assert told == (
        "--prompt-data p.jsonl: the first prompt has no label that is text or a number, and "
        "responses are scored by default by math, which compares them with one: name the labels' "
        "column with --label-key, or give an --rm-type or a --custom-rm-path that needs none"
    )
    (told,) = problems(rm_type="boxed_dapo")
    assert "are scored by boxed_dapo, which" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"rm_type": "ifbench"},
        {"rm_type": None},
        {"custom_rm_path": "mine.py:score"},
        {"custom_generate_function_path": "mine.py:agent"},
        {"data_source_path": "mine.Source"},
        {"loss_type": "sft_loss"},
        {"debug_train_only": True},
        {"num_rollout": 0},
        {"prompt_data": ("labelled.jsonl",)},
    ],
    ids=str,
)
def test_prompts_that_nothing_compares_need_no_labels(changes: dict[str, Any]) -> None:
    assert problems(**changes) == []


def test_an_evaluation_set_is_judged_by_its_own_reward() -> None:
    fine = {"rm_type": "gpqa"}
    assert problems(**fine, eval_datasets=(EvalSet(),)) == []
    (told,) = problems(**fine, eval_datasets=(EvalSet(rm_type="f1"),))
    assert told.startswith("--eval-config e.jsonl: the first prompt has no label")
    assert "its label_key" in told
    assert problems(**fine, eval_datasets=(EvalSet(rm_type="f1", custom_rm_path="m.py:f"),)) == []


def compared_by(**changes: Any) -> tuple[str | None, list[str | None]]:
    """The reward that rows of --prompt-data, and of each evaluation set, need a label for."""
    draft = Draft()
    for name, value in {**SETTINGS, **changes}.items():
        draft.own.put(name, value, DEFAULT)
    rows_with_labels(draft, Facts())
    return draft.own.values.get("compared_by"), [x.compared_by for x in draft["eval_datasets"]]


def test_rows_need_labels_for_what_compares_them_alone() -> None:
    sets = (
        dataset("plain"),
        dataset("overlap", rm_type="f1"),
        dataset("followed", rm_type="ifbench"),
        dataset("scored", custom_rm_path="mine.py:score"),
        dataset("asked", custom_generate_function_path="mine.py:agent"),
    )
    assert compared_by(eval_datasets=sets) == ("math", ["math", "f1", None, None, None])
    assert compared_by(rm_type="boxed_dapo") == ("boxed_dapo", [])
    assert compared_by(rm_type="gpqa", eval_datasets=sets[:2]) == (None, [None, "f1"])
    assert compared_by(num_rollout=0, eval_datasets=sets[:1]) == (None, ["math"])
    for own in ({"custom_rm_path": "mine.py:score"}, {"loss_type": "sft_loss"}):
        assert compared_by(**own, eval_datasets=sets[:1]) == (None, [None])


def test_those_that_compare_are_those_that_refuse_to_grade_without_a_label() -> None:
    refusing = set()
    for name in graders.NAMES:
        try:
            graders.find(name)("4", None, {"tests": ["assert True"], "correct_letter": "A"})
        except ValueError as error:
            if "no label to compare with" in str(error):
                refusing.add(name)
        except Exception:
            continue
    assert refusing == set(COMPARING)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group_rm": True}, True),
        ({"group_rm": True, "custom_rm_path": "rm.py"}, False),
        ({"group_rm": True, "rollout_function_path": "rollout.py"}, False),
        ({"group_rm": False}, False),
    ],
)
def test_scoring_groups_at_once_is_for_functions_of_ones_own(
    changes: dict[str, Any], told: bool
) -> None:
    draft = Draft()
    for name, value in {**SETTINGS, **changes}.items():
        draft.own.put(name, value, DEFAULT)
    whole_groups(draft, Facts())
    assert draft.problems == []
    assert len(draft.notices) == int(told)
    assert all("--group-rm has no effect with --rm-type math" in text for text in draft.notices)
