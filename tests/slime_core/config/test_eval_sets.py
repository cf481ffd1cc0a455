from typing import Any

import pytest
from slime_core.config.eval_sets import dataset_paths, eval_datasets

RUN: dict[str, Any] = {
    "rollout_stop": ("END",),
    "rollout_stop_token_ids": None,
    "rollout_skip_special_tokens": False,
    "eval_input_key": "prompt",
    "eval_label_key": "label",
    "eval_tool_key": "tools",
    "eval_max_prompt_len": None,
    "eval_temperature": 0.7,
    "eval_top_p": 0.9,
    "eval_top_k": -1,
    "eval_max_response_len": 100,
    "eval_max_context_len": None,
    "eval_min_new_tokens": 0,
    "eval_reward_key": None,
    "metadata_key": "metadata",
    "apply_chat_template": True,
    "apply_chat_template_kwargs": {"enable_thinking": False},
    "n_samples_per_eval_prompt": 16,
}


def file(*datasets: Any, **defaults: Any) -> dict[str, Any]:
    return {"eval": {"defaults": defaults, "datasets": list(datasets)}}


def test_a_set_comes_before_the_defaults_and_these_before_the_flags() -> None:
    content = file(
        {"name": "aime", "path": "aime.jsonl", "temperature": 0, "stop": ["A", "B"]},
        {"name": "gpqa", "path": "gpqa.jsonl", "rm_type": "gpqa"},
        temperature=1.0,
        max_response_len=2000,
    )
    found = eval_datasets((("sums", "sums.jsonl"),), content, RUN)
    assert found.problems == ()
    sums, aime, gpqa = found.datasets
    assert [(x.name, x.path) for x in found.datasets] == [
        ("sums", "sums.jsonl"), ("aime", "aime.jsonl"), ("gpqa", "gpqa.jsonl"),
    ]  # fmt: skip
    assert [x.temperature for x in found.datasets] == [0.7, 0.0, 1.0]
    assert [x.max_response_len for x in found.datasets] == [100, 2000, 2000]
    assert [x.stop for x in found.datasets] == [("END",), ("A", "B"), ("END",)]
    assert (sums.rm_type, gpqa.rm_type) == (None, "gpqa")
    assert aime.apply_chat_template_kwargs == {"enable_thinking": False}
    assert gpqa.n_samples_per_eval_prompt == 16


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"datasets": []}, "expects eval: {defaults: {...}, datasets: [{...}, ...]}"),
        (file(), "datasets is empty"),
        (file({"name": "x"}), "needs a name and a path, got {'name': 'x'}"),
        (file("aime.jsonl"), "datasets a list of mappings"),
        (file({"name": "x", "path": "p", "temprature": 1}), "did you mean temperature?"),
        (file({"name": "x", "path": "p", "app_service": 1}), "app_service is no setting of a set"),
        (file({"name": "x", "path": "p", "temperature": -1}), "x: temperature: "),
        (file({"name": "x", "path": "p", "top_p": "high"}), "x: top_p: "),
        (file({"name": "x", "path": "p", "apply_chat_template": "yes"}), "expects true or false"),
        (file({"name": "x", "path": "p"}, top_k="all"), "defaults: top_k: "),
        (file({"name": "x", "path": "p"}, path="q"), "path belongs to a set"),
        (file({"name": "sums", "path": "p"}), "two sets called sums"),
    ],
)
def test_a_mistake_in_the_file_is_named(content: dict[str, Any], complaint: str) -> None:
    found = eval_datasets((("sums", "sums.jsonl"),), content, RUN)
    assert any(complaint in problem for problem in found.problems), found.problems
    assert all(problem.startswith("--eval-config") for problem in found.problems)


def test_every_mistake_is_reported_at_once() -> None:
    content = file({"name": "x", "path": "p", "top_k": "a"}, {"name": "y", "colour": 1})
    assert len(eval_datasets((), content, RUN).problems) == 3


def test_paths_come_with_what_else_the_set_says() -> None:
    content = file({"name": "x", "path": "p", "input_key": "question"}, label_key="answer")
    ((path, row),) = dataset_paths(content)
    assert path == "p"
    assert (row["input_key"], row["label_key"]) == ("question", "answer")
