"""Families whose engines need a GPU: served as trained, within what bfloat16 itself rounds."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from slime_testing.runs import run, series, write_sums
from slime_testing.tiny_families import make_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
_EXPERTS = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
_LATENT = (
    _WIDE
    | _EXPERTS
    | {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": 256,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 16,
        # Published files have them, and SGLang reads them.
        "moe_layer_freq": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "first_k_dense_replace": 1,
    }
)
_GROUPED = _WIDE | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
MODELS: Mapping[str, dict[str, Any]] = {
    "glm4": _GROUPED,
    "qwen3_moe": _GROUPED | _EXPERTS | {"num_experts": 16},
    "glm4_moe": _GROUPED | _EXPERTS | {"n_routed_experts": 16, "num_nextn_predict_layers": 0},
    "deepseek_v3": _LATENT | {"num_experts_per_tok": 4, "n_group": 4, "topk_group": 2},
    "glm4_moe_lite": _LATENT | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
}


def command(model, prompts, reward, directory):
    return [
        "--hf-checkpoint", model, "--prompt-data", prompts, "--apply-chat-template",
        "--custom-rm-path", reward, "--num-rollout", 2, "--rollout-batch-size", 8,
        "--n-samples-per-prompt", 4, "--global-batch-size", 32, "--micro-batch-size", 8,
        "--rollout-max-response-len", 16, "--lr", "1e-5", "--output-dir", directory / "out",
        "--save-debug-rollout-data", directory / "dump-{rollout_id}.pt",
        "--sglang-mem-fraction-static", 0.3,
        *os.environ.get("SLIME_TEST_ENGINE_FLAGS", "").split(),
    ]  # fmt: skip


def mean_difference(model, samples, dtype):
    """(engine, Hugging Face in ``dtype``): mean |difference| from Hugging Face in float32."""
    from transformers import AutoModelForCausalLM

    found = {}
    for kind in (torch.float32, dtype):
        built = AutoModelForCausalLM.from_pretrained(model, dtype=kind).cuda().eval()
        rows = []
        for sample in samples:
            with torch.no_grad():
                logits = built(torch.tensor([sample.tokens]).cuda()).logits[0].float()
            table = logits.log_softmax(-1)[sample.prompt_length - 1 : -1]
            response = torch.tensor(sample.tokens[sample.prompt_length :]).cuda()
            rows.append(table.gather(1, response[:, None])[:, 0].cpu())
        found[kind] = torch.cat(rows)
    engine = torch.tensor([x for sample in samples for x in sample.rollout_log_probs])
    exact = found[torch.float32]
    return float((engine - exact).abs().mean()), float((found[dtype] - exact).abs().mean())


@pytest.mark.parametrize("family", MODELS)
def test_engines_serve_what_was_trained_within_the_rounding_of_bfloat16(family, tmp_path):
    from slime_core.data.dump import read_dump

    model = make_family(tmp_path / "model", family, **MODELS[family])
    reward = tmp_path / "even.py"
    reward.write_text(
        "async def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"
    )
    run(*command(model, write_sums(tmp_path / "sums.jsonl", 16), f"{reward}:even", tmp_path))
    groups = read_dump(str(tmp_path / "dump-{rollout_id}.pt"), 0)
    samples = [sample for group in groups for sample in group.samples]
    engine, rounding = mean_difference(model, samples, torch.bfloat16)
    trainer = series(tmp_path / "out", "train/train_rollout_logprob_abs_diff")
    print(f"{family}: engine {engine:.5f}, Hugging Face bf16 {rounding:.5f}, trainer {trainer}")
    assert list(trainer) == [0, 1]
    assert engine < 3 * rounding + 1e-3
    assert max(trainer.values()) < 4 * rounding + 1e-3
