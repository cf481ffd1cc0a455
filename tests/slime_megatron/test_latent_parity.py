"""Models with multi-latent attention compute what Hugging Face's do, and so do their gradients."""

from pathlib import Path
from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHAPES = ((5, 9), (3, 1), (8, 30), (4, 12))
"""Prompt and response lengths."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("deepseek_v3", {}),
    "moonlight": (
        "deepseek_v3",
        {"q_lora_rank": None, "rope_scaling": None, "n_group": 1, "topk_group": 1},
    ),
    "value heads wider than key heads": ("deepseek_v3", {"v_head_dim": 32}),
    "glm4_moe_lite": ("glm4_moe_lite", {}),
}


def compare_with_hugging_face(rank: int, world: int, directories: dict[str, str]) -> dict[str, Any]:
    return {name: compare(Path(path), rank, world) for name, path in directories.items()}


def compare(directory: Path, rank: int, world: int) -> dict[str, float]:
    import torch
    from slime_core.losses.aggregate import LossOutput
    from slime_megatron.iteration.passes import Entropy, StepSize, TrainItem
    from slime_megatron.mcore.passes.forward import ScoreConfig, score_responses
    from slime_megatron.mcore.passes.step import train_step
    from slime_megatron.packing.pack import PackLayout, pack
    from slime_testing.megatron_state import make_state
    from torch.overrides import _pop_mode_temporarily

    state = make_state(directory, rank, world, "--clip-grad=0")
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1, 100, (p + r,), generator=generator) for p, r in SHAPES]
    responses = [r for _, r in SHAPES]
    weights = torch.randn(sum(responses), generator=generator)
    with _pop_mode_temporarily():
        model, reference = expected(directory, tokens, responses)
        (reference * weights).sum().backward()
        batch = torch.stack([tokens[2], tokens[2].flip(0)])
        logits = model(batch).logits.detach()
    positions = torch.arange(batch.shape[1]).expand(2, -1)
    own = state.chunks[0](input_ids=batch, position_ids=positions, attention_mask=None)
    packed = pack(tokens, responses, PackLayout(row_multiple=4))
    config = ScoreConfig(vocab_size=100, chunk_size=7)
    found = score_responses(state, [packed], config)
    assert found is not None

    def loss(outputs: torch.Tensor) -> LossOutput:
        scores = outputs[0]
        unequal = (scores != found[0].values[packed.response_index]).sum()
        return LossOutput((scores * weights[packed.response_index]).sum(), {"unequal": unequal})

    item = TrainItem(packed, loss)
    step = train_step(state, [item], config, size=StepSize(1, 4), entropy=Entropy.NONE)
    return {
        "logits": float((own[..., :100] - logits).abs().max()),
        "log_probs": float((found[0].values - reference).abs().max()),
        "unequal": step.metrics["unequal"],
        **{f"gradient of {name}": x for name, x in gradients(state, model).items()},
    }


def expected(directory: Path, tokens: list[Any], responses: list[int]) -> tuple[Any, Any]:
    """Hugging Face's model, and log-probabilities of the responses, one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    rows: list[Any] = []
    for ids, count in zip(tokens, responses, strict=True):
        scores = model(ids[None]).logits[0].log_softmax(-1)[-count - 1 : -1]
        rows.append(scores.gather(-1, ids[-count:, None])[:, 0])
    return model, torch.cat(rows)


def gradients(state: Any, model: Any) -> dict[str, float]:
    """Relative difference of every parameter's gradient from Hugging Face's."""
    from slime_convert.transforms import to_megatron
    from slime_megatron.mcore.weights.places import located

    table = state.family.parameters(state.hf_config)
    theirs = dict(saved_gradients(model))
    differences: dict[str, float] = {}
    for parameter, tensor in located(state.chunks[0], table):
        if not parameter.name.endswith("expert_bias"):
            wanted = to_megatron(parameter, [theirs[each.name] for each in parameter.hf])
            own = tensor.main_grad[: len(wanted)]
            distance = float((own - wanted).norm())
            differences[parameter.name] = distance / max(float(wanted.norm()), 1e-12)
    return differences


def saved_gradients(model: Any) -> Any:
    """Gradients by the names that tensors have in files, where every expert has its own."""
    import torch

    for name, parameter in model.named_parameters():
        # An expert that no token visited has no gradient.
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(".experts"):
            yield name, grad
            continue
        for expert, part in enumerate(grad):
            if kind == "down_proj":
                yield f"{stem}.{expert}.down_proj.weight", part
            else:
                gate, up = part.chunk(2)
                yield f"{stem}.{expert}.gate_proj.weight", gate
                yield f"{stem}.{expert}.up_proj.weight", up


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    directories = {
        name: str(make_family(tmp_path_factory.mktemp("model"), model_type, **changes))
        for name, (model_type, changes) in MODELS.items()
    }
    return run_on_ranks(1, compare_with_hugging_face, directories, megatron=True)[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_hugging_face(found: dict[str, dict[str, float]], name: str):
    assert found[name]["logits"] <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_packed_log_probs_are_those_of_separate_sequences(
    found: dict[str, dict[str, float]], name: str
):
    assert found[name]["log_probs"] <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_that_of_hugging_face(found: dict[str, dict[str, float]], name: str):
    compared = {key: x for key, x in found[name].items() if key.startswith("gradient")}
    assert any("linear_kv_down_proj" in key for key in compared)
    assert any("local_experts" in key for key in compared)
    assert {key: x for key, x in compared.items() if not x <= 1e-4} == {}


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_with_gradient_gives_the_bits_of_one_without(
    found: dict[str, dict[str, float]], name: str
):
    assert found[name]["unequal"] == 0
