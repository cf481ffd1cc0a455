"""Families through the whole loop: built, served, trained, published, exported."""

import pytest
import torch
from safetensors.torch import load_file
from slime_testing.runs import run, series, write_sums
from slime_testing.tiny_families import make_family, random_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SERVED_ON_A_CPU = {
    "llama": {"head_dim": 16, "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"head_dim": None, "architectures": ["Qwen2ForCausalLM"]},
    "glm4": {},
    "qwen3_moe": {},
}


def command(model, prompts, reward, directory):
    return [
        "--hf-checkpoint", model, "--prompt-data", prompts, "--apply-chat-template",
        "--custom-rm-path", reward, "--num-rollout", 2, "--rollout-batch-size", 4,
        "--n-samples-per-prompt", 4, "--global-batch-size", 16, "--micro-batch-size", 4,
        "--rollout-max-response-len", 6, "--lr", "1e-2", "--output-dir", directory / "out",
        "--save-hf", directory / "hf-{rollout_id}", "--save-interval", 1,
    ]  # fmt: skip


@pytest.mark.parametrize("family", SERVED_ON_A_CPU)
def test_engines_serve_the_weights_that_were_trained(family, tmp_path):
    model = make_family(tmp_path / "model", family, **SERVED_ON_A_CPU[family])
    prompts = write_sums(tmp_path / "sums.jsonl", 8)
    reward = tmp_path / "even.py"
    reward.write_text(
        "async def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"
    )
    run(*command(model, prompts, f"{reward}:even", tmp_path))
    differences = series(tmp_path / "out", "train/train_rollout_logprob_abs_diff")
    assert list(differences) == [0, 1]
    assert 0 < max(differences.values()) <= 1e-4
    assert all(norm > 0 for norm in series(tmp_path / "out", "train/grad_norm").values())
    # What was exported is a checkpoint of the same model, with other weights.
    names = set(random_model(model, seed=0).state_dict())
    before, after = (load_file(d / "model.safetensors") for d in (model, tmp_path / "hf-0"))
    assert before.keys() == after.keys()
    assert names >= {n for n in after if "experts" not in n}
    assert not all(torch.equal(before[name], after[name]) for name in before)
