"""Policy, critic and reference take turns with an engine on one GPU."""

import os
from pathlib import Path

import pytest
import torch
from slime_testing.runs import run, series, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


def test_a_critic_learns_beside_a_policy_and_its_engine(tmp_path: Path) -> None:
    reward = tmp_path / "low.py"
    reward.write_text(
        "async def low(args, sample, **_):\n    return float(sample.tokens[-1] < 50)\n"
    )
    run(
        "--hf-checkpoint", make_qwen3(tmp_path / "model", hidden=256, **SIZES), "--bf16",
        "--prompt-data", write_sums(tmp_path / "sums.jsonl", 32), "--apply-chat-template",
        "--custom-rm-path", f"{reward}:low", "--advantage-estimator", "ppo",
        "--normalize-advantages", "--num-critic-only-steps", 1, "--use-kl-loss",
        "--kl-loss-coef", 0.01, "--ref-update-interval", 2, "--num-rollout", 4,
        "--rollout-batch-size", 16, "--n-samples-per-prompt", 4, "--global-batch-size", 32,
        "--use-distributed-optimizer", "--rollout-max-response-len", 16, "--lr", "1e-3",
        "--num-gpus-per-node", 1, "--sglang-mem-fraction-static", 0.3,
        "--output-dir", tmp_path / "out", "--save", tmp_path / "save", "--save-interval", 2,
        *os.environ.get("SLIME_TEST_ENGINE_FLAGS", "").split(),
    )  # fmt: skip
    values = series(tmp_path / "out", "critic/value_loss")
    rewards = series(tmp_path / "out", "rollout/rewards")
    differences = series(tmp_path / "out", "train/train_rollout_logprob_abs_diff")
    print(values, rewards, differences)
    assert list(values) == [0, 1, 2, 3]
    assert values[3] < values[0]
    assert list(differences) == [1, 2, 3], "the critic goes first"
    # bfloat16 rounds what engine and trainer compute, each in its own order.
    assert max(differences.values()) < 0.1
    assert series(tmp_path / "out", "train/kl_loss")[3] > 0
    assert (tmp_path / "save" / "iter_0000003").is_dir()
