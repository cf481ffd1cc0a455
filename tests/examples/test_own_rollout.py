"""What two examples do themselves: a whole rollout, and conversations to learn from."""

import random
from pathlib import Path
from typing import Any

from slime_core.data.prompts import Prompt
from slime_core.data.stream import PromptStream
from slime_core.hooks.rollout_functions import rollout_function
from slime_core.plugins.plugin import load_plugin
from slime_core.types import Status
from slime_testing.json_server import json_server
from slime_testing.tiny import make_qwen3
from slime_testing.workspace import ROOT

EXAMPLES = ROOT / "examples"


def test_the_rollout_keeps_the_groups_whose_rewards_vary_most(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def reply(path: str, body: Any) -> tuple[int, Any]:
        assert path == "/generate"
        asked.append(body)
        right = body["input_ids"][-1] == 2 and body["sampling_params"]["sampling_seed"] % 2 == 0
        text = "\\boxed{5}" if right else "\\boxed{6}"
        rows = [[-0.5, 7, None], [-0.25, 8, None]]
        meta = {"output_token_logprobs": rows, "finish_reason": {"type": "stop"}}
        return 200, {"text": text, "meta_info": meta}

    prompts = [Prompt(prompt="p", label="5", tokens=(1, last)) for last in (3, 2)]
    source = PromptStream(prompts, 4, shuffle=False, seed=0)
    with json_server(reply) as url:
        flat = {
            "rollout_batch_size": 1,
            "sglang_router_ip": "127.0.0.1",
            "sglang_router_port": int(url.rpartition(":")[2]),
            "hf_checkpoint": str(make_qwen3(tmp_path / "model")),
            "rollout_temperature": 1.0,
            "rollout_max_response_len": 8,
        }
        path = f"{EXAMPLES}/custom_rollout/rollout.py:generate_rollout"
        (group,), metrics = rollout_function(path, flat)(3, source)
    assert len(asked) == 8
    assert (group.group_index, metrics["rollout/num_dropped"]) == (1, 1.0)
    assert [sample.reward for sample in group.samples] == [1.0, 0.0, 1.0, 0.0]
    sample = group.samples[0]
    assert (sample.tokens, sample.response_length) == ([1, 2, 7, 8], 2)
    assert (sample.rollout_log_probs, sample.status) == ([-0.5, -0.25], Status.COMPLETED)


def test_wrong_answers_of_a_conversation_are_marked() -> None:
    make = load_plugin(f"{EXAMPLES}/sft/conversations.py:conversation")
    rows = [{"prompt": f"{n}?", "label": str(n)} for n in (12, 34, 56)]
    marked = 0
    for seed in range(40):
        messages = make(rows, random.Random(seed))["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * 3
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            right = answer["content"] == f"\\boxed{{{question['content'][:-1]}}}"
            assert answer["step_loss_mask"] == int(right)
            marked += not right
    assert 10 <= marked <= 30
