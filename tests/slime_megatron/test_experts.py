from pathlib import Path

import torch
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family


def adds_in_order(rank: int, world: int) -> list[list[float]]:
    from slime_megatron.mcore.experts import sum_by_token

    # Expert 0 is visited by tokens 0 and 2, expert 1 by 0 and 1, expert 2 by 1 and 2.
    token_of_row = torch.tensor([0, 2, 0, 1, 1, 2])
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]], requires_grad=True)
    found = sum_by_token(x, token_of_row, 3)
    (found * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert x.grad is not None
    # Added in bfloat16, each half would be rounded away: the number after 256 is 258.
    small = torch.tensor([[256.0], *[[0.5]] * 3], dtype=torch.bfloat16)
    exact = sum_by_token(small, torch.zeros(4, dtype=torch.long), 1)
    return [found.flatten().tolist(), x.grad.flatten().tolist(), exact.flatten().tolist()]


def test_what_experts_give_a_token_is_added_in_float32_and_in_their_order():
    found, grad, exact = run_on_ranks(1, adds_in_order, megatron=True)[0]
    assert found == [5.0, 24.0, 34.0]
    assert grad == [1.0, 100.0, 1.0, 10.0, 10.0, 100.0]
    assert exact == [258.0]  # 257.5, rounded once


def dispatchers(rank: int, world: int, model: str) -> list[str]:
    state = make_state(Path(model), rank, world, optimizer=False)
    return [
        type(getattr(module, "token_dispatcher")).__name__  # noqa: B009
        for module in state.chunks[0].modules()
        if hasattr(module, "token_dispatcher")
    ]


def test_every_layer_of_experts_adds_that_way(tmp_path: Path):
    model = make_family(tmp_path, "glm4_moe", num_hidden_layers=3)
    found = run_on_ranks(1, dispatchers, str(model), megatron=True)[0]
    assert found == ["OrderedDispatcher"] * 2
