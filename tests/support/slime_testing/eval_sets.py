"""Evaluation sets as a run has them, with few settings given."""

from typing import Any

from slime_core.config.eval_sets import EvalDataset, eval_datasets


def dataset(name: str, **settings: Any) -> EvalDataset:
    """A set that says ``settings`` of itself, in a run that says next to nothing."""
    run = {
        "rollout_stop": None,
        "rollout_stop_token_ids": None,
        "rollout_skip_special_tokens": False,
        "eval_input_key": "input",
        "eval_label_key": None,
        "eval_tool_key": "tools",
        "eval_max_prompt_len": None,
        "eval_temperature": 1.0,
        "eval_top_p": 1.0,
        "eval_top_k": -1,
        "eval_max_response_len": 1,
        "eval_max_context_len": None,
        "eval_min_new_tokens": 0,
        "eval_reward_key": None,
        "metadata_key": "metadata",
        "apply_chat_template": False,
        "apply_chat_template_kwargs": {},
        "n_samples_per_eval_prompt": 1,
    }
    file = {"eval": {"datasets": [{"name": name, "path": "rows.jsonl", **settings}]}}
    found = eval_datasets((), file, run)
    assert found.problems == ()
    return found.datasets[0]
