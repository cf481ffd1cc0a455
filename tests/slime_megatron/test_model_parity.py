"""The Megatron model computes what Hugging Face's does, and its log-probabilities are exact."""

from pathlib import Path
from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEMPERATURE = 0.7


def compare_with_hugging_face(rank: int, world: int, directory: str) -> dict[str, float]:
    import torch
    from slime_core.losses.aggregate import LossOutput
    from slime_megatron.iteration.passes import Entropy, StepSize, TrainItem
    from slime_megatron.mcore.passes.forward import ScoreConfig, score_responses
    from slime_megatron.mcore.passes.step import train_step
    from slime_megatron.packing.pack import PackLayout, pack
    from slime_testing.megatron_state import make_state
    from torch.overrides import _pop_mode_temporarily

    state = make_state(Path(directory), rank, world, "--clip-grad=0")
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 9), (3, 1), (8, 30), (4, 12)]
    # Not token 0: Hugging Face keeps the gradient of the padding token's embedding at zero.
    tokens = [torch.randint(1, 100, (p + r,), generator=generator) for p, r in shapes]
    weights = torch.randn(2, sum(r for _, r in shapes), generator=generator)
    with _pop_mode_temporarily():
        reference, model = expected(Path(directory), tokens, [r for _, r in shapes])
        (reference * weights).sum().div(3).backward()
        batch = torch.stack([tokens[2], tokens[2].flip(0)])
        logits = model(batch).logits.detach()
    positions = torch.arange(batch.shape[1]).expand(2, -1)
    own = state.chunks[0](input_ids=batch, position_ids=positions, attention_mask=None)
    packed = pack(tokens, [r for _, r in shapes], PackLayout(row_multiple=4))
    config = ScoreConfig(vocab_size=100, temperature=TEMPERATURE, chunk_size=7)
    found = score_responses(state, [packed], config, entropy=Entropy.REPORT)
    assert found is not None

    def loss(outputs: torch.Tensor) -> LossOutput:
        scores, entropy = outputs
        w = weights[:, packed.response_index]
        unequal = (scores != found[0].values[packed.response_index]).sum()
        return LossOutput((scores * w[0] + entropy * w[1]).sum(), {"unequal": unequal})

    step = train_step(
        state, [TrainItem(packed, loss)], config, size=StepSize(3, 4), entropy=Entropy.TRAIN
    )
    return {
        "logits": float((own[..., :100] - logits).abs().max()),
        "log_probs": float((found[0].values - reference[0]).abs().max()),
        "entropy": float((found[1].values - reference[1]).abs().max()),
        "unequal": step.metrics["unequal"],
        "gradient": worst_gradient(state, model),
        "norm": abs(step.grad_norm / gradient_norm(model) - 1),
    }


def expected(directory: Path, tokens: list[Any], responses: list[int]) -> tuple[Any, Any]:
    """[log-probabilities, entropies] of the responses by plain log-softmax, and the model."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    rows: list[Any] = []
    for ids, count in zip(tokens, responses, strict=True):
        scores = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)[-count - 1 : -1]
        picked = scores.gather(-1, ids[-count:, None])[:, 0]
        rows.append(torch.stack([picked, -(scores.exp() * scores).sum(-1)]))
    return torch.cat(rows, 1), model


def gradient_norm(model: Any) -> float:
    return float(sum(p.grad.double().pow(2).sum() for p in model.parameters()) ** 0.5)


def worst_gradient(state: Any, model: Any) -> float:
    """Largest relative difference over parameters that both hold in one shape."""
    import torch

    theirs = {name: p.grad for name, p in model.named_parameters()}
    pairs = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
    }
    for i in (0, 1):
        ours, hf = f"decoder.layers.{i}.", f"model.layers.{i}."
        pairs |= {
            ours + "input_layernorm.weight": hf + "input_layernorm.weight",
            ours + "self_attention.q_layernorm.weight": hf + "self_attn.q_norm.weight",
            ours + "self_attention.linear_proj.weight": hf + "self_attn.o_proj.weight",
            ours + "mlp.linear_fc2.weight": hf + "mlp.down_proj.weight",
        }
    worst = 0.0
    for name, parameter in state.chunks[0].module.named_parameters():
        if name in pairs:
            grad = theirs[pairs[name]]
            own = parameter.main_grad[: len(grad)]
            worst = max(worst, float((own - grad).norm() / grad.norm()))
            assert not torch.any(parameter.main_grad[len(grad) :]), "padding has a gradient"
    return worst


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    directory = make_qwen3(tmp_path_factory.mktemp("model"), tied=request.param)
    return run_on_ranks(1, compare_with_hugging_face, str(directory), megatron=True)[0]


def test_logits_are_those_of_hugging_face(found: dict[str, float]):
    assert found["logits"] <= 1e-5


def test_packed_log_probs_and_entropy_are_those_of_separate_sequences(found: dict[str, float]):
    assert found["log_probs"] <= 1e-5
    assert found["entropy"] <= 1e-5


def test_gradients_are_those_of_hugging_face(found: dict[str, float]):
    assert found["gradient"] <= 1e-5
    assert found["norm"] <= 1e-5


def test_a_pass_with_gradient_gives_the_bits_of_one_without(found: dict[str, float]):
    assert found["unequal"] == 0
