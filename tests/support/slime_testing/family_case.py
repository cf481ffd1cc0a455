"""A family's Megatron model next to transformers' own, at any layout: logits and every gradient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SHAPES = ((5, 9), (3, 1), (8, 30), (4, 12), (2, 17), (6, 6), (3, 20), (1, 8))
"""Prompt and response lengths of the sequences that the gradients are of."""
DIVISOR = 3.0


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Not token 0: transformers keeps the gradient of the padding token's embedding at zero.
    return [torch.randint(1, 100, (p + r,), generator=generator) for p, r in SHAPES]


def weights(row: int) -> Tensor:
    """What each response token's log-probability counts for in the loss."""
    return torch.randn(SHAPES[row][1], generator=torch.Generator().manual_seed(row))


def expected(directory: Path, work: Path) -> None:
    """Write what transformers finds, in float32, to files in ``work``.

    ``found.pt``: log-probabilities of the responses by sequence, logits, gradient norm. And a
    checkpoint of gradients: the model saved with every parameter replaced by its gradient, so that
    they come under the names of checkpoints.
    """
    from transformers import AutoModelForCausalLM

    from slime_testing.tiny_families import known_config

    model: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        config=known_config(directory),
        attn_implementation="eager",
        dtype=torch.float32,
    )
    found: list[Tensor] = []
    loss = torch.zeros(())
    for row, ids in enumerate(sequences()):
        count = SHAPES[row][1]
        scores = model(ids[None]).logits[0].log_softmax(-1)[-count - 1 : -1]
        picked = scores.gather(-1, ids[-count:, None])[:, 0]
        loss = loss + (picked * weights(row)).sum() / DIVISOR
        found.append(picked.detach())
    loss.backward()
    ids = torch.stack([sequences()[2], sequences()[2].flip(0)])
    norm = float(sum(p.grad.double().pow(2).sum() for p in model.parameters()) ** 0.5)
    with torch.no_grad():
        logits = model(ids).logits
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
    model.save_pretrained(work)
    torch.save({"log_probs": found, "logits": logits, "norm": norm}, work / "found.pt")


def compare(
    rank: int, world: int, directory: Path, work: Path, flags: tuple[str, ...]
) -> dict[str, float]:
    """The largest differences from ``expected`` on this layout; of gradients, relative ones."""
    from slime_core.losses.aggregate import LossOutput
    from slime_megatron.iteration.passes import Entropy, StepSize, TrainItem
    from slime_megatron.mcore.passes.forward import ScoreConfig, score_responses
    from slime_megatron.mcore.passes.step import train_step
    from slime_megatron.packing.pack import pack

    from slime_testing.megatron_state import make_state

    state = make_state(directory, rank, world, "--clip-grad=0", *flags)
    found: Mapping[str, Any] = torch.load(work / "found.pt")
    differences: dict[str, float] = {}
    if world == 1:
        ids = torch.stack([sequences()[2], sequences()[2].flip(0)])
        positions = torch.arange(ids.shape[1]).expand(2, -1)
        own = state.chunks[0](input_ids=ids, position_ids=positions, attention_mask=None)
        differences["logits"] = float((own[..., :100].detach() - found["logits"]).abs().max())
    mine = _own_rows(world)
    layout = _pack_layout()
    # Two sequences in each microbatch.
    microbatches = [
        pack([sequences()[row] for row in rows], [SHAPES[row][1] for row in rows], layout)
        for rows in (mine[i : i + 2] for i in range(0, len(mine), 2))
    ]
    config = ScoreConfig(vocab_size=100, chunk_size=7)
    scores = score_responses(state, microbatches, config)
    if scores is not None:
        reference = torch.cat([found["log_probs"][row] for row in mine])
        differences["log_probs"] = float((scores[0].values - reference).abs().max())
    items = []
    for microbatch, start in zip(microbatches, range(0, len(mine), 2), strict=True):
        weight = torch.cat([weights(row) for row in mine[start : start + 2]])
        picked = microbatch.pick(weight)

        def loss(outputs: Tensor, w: Tensor = picked) -> LossOutput:
            total = (outputs[0] * w).sum()
            return LossOutput(total, {"loss": total.detach()})

        items.append(TrainItem(microbatch, loss))
    size = StepSize(DIVISOR, len(SHAPES))
    norm = train_step(state, items, config, size=size, entropy=Entropy.NONE).grad_norm
    differences["norm"] = abs(norm / found["norm"] - 1)
    return differences | _gradient_differences(state, work)


def _gradient_differences(state: Any, work: Path) -> dict[str, float]:
    from slime_megatron.mcore.weights.places import located

    from slime_testing.megatron_steps import whole_model

    table = state.family.parameters(state.hf_config)
    with torch.no_grad():
        for chunk in state.chunks:
            for _, tensor in located(chunk, table):
                tensor.copy_(getattr(tensor, "main_grad", torch.zeros_like(tensor)))
    ours, theirs = whole_model(state), load_file(work / "model.safetensors")
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    relative = {
        name: float((ours[name] - grad).norm() / grad.norm().clamp_min(1e-30))
        for name, grad in theirs.items()
        if not name.endswith("e_score_correction_bias")
    }
    worst = max(relative, key=lambda name: relative[name])
    return {"gradient": relative[worst], f"gradient of {worst}": relative[worst]}


def _own_rows(world: int) -> list[int]:
    """The sequences of this rank's data-parallel share."""
    from megatron.core import parallel_state

    rank: int = parallel_state.get_data_parallel_rank()
    size: int = parallel_state.get_data_parallel_world_size()
    return list(range(rank, len(SHAPES), size))


def _pack_layout() -> Any:
    from megatron.core import parallel_state as groups
    from slime_megatron.packing.pack import PackLayout

    return PackLayout(
        cp_size=groups.get_context_parallel_world_size(),
        cp_rank=groups.get_context_parallel_rank(),
        row_multiple=4 * groups.get_tensor_model_parallel_world_size(),
    )
