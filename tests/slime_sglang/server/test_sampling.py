import pytest
import torch
from slime_sglang.server.sampling import _padded, pick_among, pick_tokens


def test_tokens_are_drawn_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    rows = 40_000
    seeds = torch.arange(rows)
    picked = pick_tokens(
        probabilities.log().expand(rows, -1), seeds, torch.full((rows,), 7)
    ).flatten()
    shares = torch.bincount(picked, minlength=5) / rows
    # Five standard deviations of a share near one half.
    assert (shares - probabilities).abs().max() < 5 * (0.25 / rows) ** 0.5
    assert shares[4] == 0


def test_a_draw_depends_on_seed_and_position_and_on_no_other_row() -> None:
    logprobs = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    seeds, positions = torch.tensor([3, 3, 4, 3, 9, 2**61]), torch.arange(6)
    together = pick_tokens(logprobs, seeds, positions)
    for row in range(6):
        alone = pick_tokens(logprobs[row : row + 1], seeds[row : row + 1], positions[row : row + 1])
        assert alone.item() == together[row].item()


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    uniform = torch.zeros(1, 2)
    draws = torch.stack(
        [
            torch.cat(
                [
                    pick_tokens(uniform, torch.tensor([s]), torch.tensor([p])).flatten()
                    for p in range(60)
                ]
            )
            for s in range(60)
        ]
    ).double()
    assert abs(draws.mean() - 0.5) < 5 * 0.5 / 60
    by_position = (draws[:, 1:] == draws[:, :-1]).double().mean()
    by_seed = (draws[1:] == draws[:-1]).double().mean()
    assert abs(by_position - 0.5) < 0.05
    assert abs(by_seed - 0.5) < 0.05


def test_a_row_of_a_product_is_the_same_bits_in_a_batch_of_any_size() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(256, 64, generator=generator)
    x = torch.randn(80, 64, generator=generator)
    whole = _padded(x, lambda rows: rows @ weight.T)
    for rows in (1, 2, 3, 5, 7, 15, 16, 17, 33, 80):
        assert torch.equal(_padded(x[:rows], lambda r: r @ weight.T), whole[:rows])


def test_a_limit_of_one_request_does_not_change_what_the_others_draw():
    torch.manual_seed(0)
    probs = torch.randn(64, 50).softmax(dim=-1)
    seeds, positions = torch.arange(64) * 7919, torch.arange(64) + 3
    free = pick_tokens(probs.log(), seeds, positions)[:, 0]
    top_ks, top_ps = torch.full((64,), 1 << 30), torch.ones(64)
    top_ks[0] = 1
    found = pick_among(probs, top_ks, top_ps, torch.zeros(64), False, seeds, positions)
    assert found[0] == probs[0].argmax()
    assert torch.equal(found[1:].long(), free[1:])


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "allowed"),
    [
        (2, 1.0, 0.0, {1, 3}),
        (9, 0.6, 0.0, {1, 3}),
        (9, 1.0, 0.45, {1, 3}),
        (9, 1.0, 0.2, {0, 1, 3}),
    ],
)
def test_only_the_likeliest_tokens_are_drawn_where_there_is_a_limit(top_k, top_p, min_p, allowed):
    rows = 400
    probs = torch.tensor([0.12, 0.5, 0.02, 0.3, 0.06]).expand(rows, -1)
    found = pick_among(
        probs,
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        min_p > 0,
        torch.arange(rows),
        torch.full((rows,), 5),
    )
    assert set(found.tolist()) == allowed
