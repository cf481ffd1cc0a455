"""Compiled code never talks to other ranks, for it would lose gradients."""

from typing import Any

import pytest
import torch
from slime_megatron.mcore.layers.sealed import sealed
from slime_testing.ranks import run_on_ranks
from torch import Tensor


def test_what_does_not_talk_is_compiled_by_the_named_compiler():
    compiled = torch.compile(lambda x: x.sin() + 1, backend=sealed("eager"))
    x = torch.arange(3.0)
    assert torch.equal(compiled(x), x.sin() + 1)


def test_one_name_gives_one_compiler():
    assert sealed("eager") is sealed("eager")
    assert sealed("eager") is not sealed("aot_eager")


def gathered(rank: int, world: int) -> tuple[str, list[float]]:
    """What is said of an exchange in compiled code, and its gradient when it is left out."""
    import torch.distributed as dist

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows: Tensor) -> Tensor:
            whole = torch.empty(world * len(rows))
            dist.all_gather_into_tensor(whole, rows.contiguous())
            return whole

        @staticmethod
        def backward(ctx, *grads: Tensor) -> Tensor:
            own = torch.empty(len(grads[0]) // world)
            dist.reduce_scatter_tensor(own, grads[0].contiguous())
            return own

    def gather(rows: Tensor) -> Tensor:
        return Gather.apply(rows)  # type: ignore[return-value]

    def gradient(exchange: Any) -> list[float]:
        rows = torch.ones(2, requires_grad=True)
        weights = torch.arange(4.0) * (rank + 1)
        compiled = torch.compile(lambda x: exchange(2 * x) * weights, backend=sealed("aot_eager"))
        compiled(rows).sum().backward()
        assert rows.grad is not None
        return rows.grad.tolist()

    with pytest.raises(RuntimeError) as refused:
        gradient(gather)
    return str(refused.value), gradient(torch.compiler.disable(gather))


def test_code_that_talks_is_refused_and_keeps_its_gradient_outside():
    found = run_on_ranks(2, gathered)
    for told, _ in found:
        assert "reduce_scatter_tensor" in told
        assert "--no-compile-layers" in told
    # Twice the sum of the ranks' weights, 1 + 2 times 0, 1 and 2, 3.
    assert [gradient for _, gradient in found] == [[0.0, 6.0], [12.0, 18.0]]
