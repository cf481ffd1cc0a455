"""Losses that balance experts are added to a step as a mean over its rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

COEFFICIENT = 0.01
FLAGS = (
    "--moe-router-load-balancing-type=aux_loss",
    f"--moe-aux-loss-coeff={COEFFICIENT}",
    "--moe-z-loss-coeff=1e-12",  # reported, and too small to be seen in a gradient
)


def router_gradient(rank: int, world: int, model: str) -> dict[str, Any]:
    """The gradient of a step whose own loss is zero, and the hand-made one of its rows."""
    from slime_core.losses.aggregate import LossOutput
    from slime_megatron.iteration.passes import Entropy, StepSize, TrainItem
    from slime_megatron.mcore.passes.forward import ScoreConfig
    from slime_megatron.mcore.passes.step import train_step
    from slime_megatron.packing.pack import PackLayout, pack

    state = make_state(Path(model), rank, world, "--clip-grad=0", *FLAGS)
    router = next(m for n, m in state.chunks[0].named_modules() if n.endswith("mlp.router"))
    weight = router.weight.detach().clone()
    seen: list[torch.Tensor] = []
    router.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach().flatten(0, 1)))
    lengths = [[20, 7], [5]] if rank == 0 else [[11], [3, 9]]
    generator = torch.Generator().manual_seed(rank)

    def nothing(outputs: torch.Tensor) -> LossOutput:
        total = (outputs * 0).sum()
        return LossOutput(total, {"loss": total.detach()})

    items = [
        TrainItem(
            pack(
                [torch.randint(1, 100, (n,), generator=generator) for n in each],
                [n - 1 for n in each],
                PackLayout(),
            ),
            nothing,
        )
        for each in lengths
    ]
    step = train_step(
        state, items, ScoreConfig(vocab_size=100), size=StepSize(7, 4), entropy=Entropy.NONE
    )
    balance = [by_hand(rows @ weight.T) / COEFFICIENT for rows in seen]
    z = [(rows @ weight.T).logsumexp(-1).square().mean() for rows in seen]
    weight.requires_grad_()
    total = sum(by_hand(rows @ weight.T) * len(rows) for rows in seen)
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert weight.grad is not None
    return {
        "found": router.weight.main_grad.tolist(),
        "hand": weight.grad.tolist(),
        "rows": sum(len(rows) for rows in seen),
        "reported": [step.metrics["load_balancing_loss"], step.metrics["z_loss"]],
        "balance and z": [float(sum(each)) / len(each) for each in (balance, z)],
    }


def by_hand(logits: torch.Tensor) -> torch.Tensor:
    """experts * sum of (share of choices * mean probability), Switch Transformers eq. 4."""
    rows, experts = logits.shape
    chosen = torch.zeros_like(logits).scatter(1, logits.topk(2, dim=1).indices, 1.0)
    shares = chosen.sum(0) / (2 * rows)
    return COEFFICIENT * experts * (shares * logits.softmax(-1).mean(0)).sum()


@pytest.mark.parametrize("world", [1, 2])
def test_the_gradient_is_that_of_the_mean_over_all_rows_of_the_step(tmp_path: Path, world: int):
    model = make_family(tmp_path / "model", "qwen3_moe", num_hidden_layers=1)
    ranks = run_on_ranks(world, router_gradient, str(model), megatron=True)
    hand = torch.stack([torch.tensor(rank["hand"]) for rank in ranks])
    expected = hand.sum(0) / sum(rank["rows"] for rank in ranks)
    for rank in ranks:
        assert torch.allclose(torch.tensor(rank["found"]), expected, rtol=1e-4, atol=1e-9)
    assert expected.abs().max() > 1e-6
    means = torch.tensor([rank["balance and z"] for rank in ranks]).mean(0)
    for rank in ranks:
        assert rank["reported"] == pytest.approx(means.tolist(), rel=1e-4)
