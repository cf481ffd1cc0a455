from pathlib import Path

import torch
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family


def there_and_back(rank: int, world: int) -> dict[str, list[float]]:
    from slime_megatron.mcore.experts.routes import Routes, collected, spread

    # Token 0 visits experts 0 and 1, token 1 experts 1 and 2, token 2 experts 0 and 2.
    chosen = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
    routes = Routes.of(chosen, topk=2)
    tokens = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    rows = spread(tokens, routes)
    rows.backward(torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]]))
    answers = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]], requires_grad=True)
    found = collected(answers, routes)
    found.backward(torch.tensor([[1.0], [10.0], [100.0]]))
    table = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.3, 0.4], [0.5, 0.0, 0.6]], requires_grad=True)
    picked = routes.picked(table)
    picked.backward(torch.arange(1.0, 7.0))
    # Added in bfloat16, each half would be rounded away: the number after 256 is 258.
    small = torch.tensor([[256.0], *[[0.5]] * 3], dtype=torch.bfloat16)
    exact = collected(small, Routes.of(torch.ones(1, 4, dtype=torch.bool), topk=4))
    assert tokens.grad is not None
    assert answers.grad is not None
    assert table.grad is not None
    return {
        "rows": rows.flatten().tolist(),
        "tokens' gradients": tokens.grad.flatten().tolist(),
        "sums": found.flatten().tolist(),
        "answers' gradients": answers.grad.flatten().tolist(),
        "picked": [round(x, 3) for x in picked.tolist()],
        "table's gradients": table.grad.flatten().tolist(),
        "exact": exact.flatten().tolist(),
    }


def test_tokens_go_to_their_experts_and_what_comes_back_is_added_in_their_order_in_float32():
    assert run_on_ranks(1, there_and_back, megatron=True)[0] == {
        "rows": [1.0, 3.0, 1.0, 2.0, 2.0, 3.0],
        "tokens' gradients": [5.0, 24.0, 34.0],
        "sums": [5.0, 24.0, 34.0],
        "answers' gradients": [1.0, 100.0, 1.0, 10.0, 10.0, 100.0],
        "picked": [0.1, 0.5, 0.2, 0.3, 0.4, 0.6],
        "table's gradients": [1.0, 3.0, 0.0, 0.0, 4.0, 5.0, 2.0, 0.0, 6.0],
        "exact": [258.0],  # 257.5, rounded once
    }


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
