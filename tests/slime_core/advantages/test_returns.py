from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.advantages.returns import (
    discounted,
    discounted_returns,
    generalized,
    reinforce_plus_plus,
)
from slime_core.batch import Ragged

DISCOUNTS = st.sampled_from([0.0, 1.0, 0.5, 0.99, 0.9999, 1e-3])


@st.composite
def batches(draw, masked=True):
    """Ragged float64 rows with masks: empty, of one token, with holes, masked throughout."""
    lengths = draw(st.lists(st.integers(0, 23), max_size=7))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    share = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])) if masked else 1.0
    mask = (torch.rand(size, generator=generator) < share).double()
    x = torch.randn(2, size, generator=generator, dtype=torch.float64)
    rewards = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return x[0], x[1], Ragged(mask, torch.tensor(lengths, dtype=torch.int64)), rewards


def serial(rows, discount):
    """The recursion itself, token by token from the end."""
    result = []
    for row in rows:
        ahead, found = 0.0, []
        for value in reversed(row):
            ahead = value + discount * ahead
            found.append(ahead)
        result.append(found[::-1])
    return result


def serial_gae(kl, values, mask, rewards, gamma, gae_lambda):
    """From one trained token to the next; None at the others."""
    advantages, returns = [], []
    pieces = zip(kl.split(), values.split(), mask.split(), rewards.tolist(), strict=True)
    for k, v, m, reward in pieces:
        row, back = [None] * len(k), [None] * len(k)
        ahead_value = ahead = 0.0
        bonus = reward
        for t in reversed(range(len(k))):
            if m[t] == 0:
                continue
            delta = bonus - float(k[t]) + gamma * ahead_value - float(v[t])
            ahead = delta + gamma * gae_lambda * ahead
            ahead_value, bonus = float(v[t]), 0.0
            row[t], back[t] = ahead, ahead + float(v[t])
        advantages += row
        returns += back
    return [x or 0.0 for x in advantages], [x or 0.0 for x in returns]


def ragged(values, lengths):
    return Ragged(torch.tensor(values, dtype=torch.float64), torch.tensor(lengths))


def test_discounted_sums_by_hand():
    x, lengths = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([3, 2])
    assert discounted(x, lengths, 0.5).tolist() == [3.0, 4.0, 4.0, 16.0, 16.0]
    assert discounted(x, lengths, 1.0).tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]
    assert discounted(x, lengths, 0.0).tolist() == x.tolist()


@given(batches(masked=False), DISCOUNTS, st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_the_scan_equals_the_recursion_whatever_the_chunks(batch, discount, chunk):
    x, _, mask, _ = batch
    rows = [row.tolist() for row in Ragged(x, mask.lengths).split()]
    expected = torch.tensor([y for row in serial(rows, discount) for y in row], dtype=torch.float64)
    found = discounted(x, mask.lengths, discount, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_three_levels_of_chunks_equal_the_recursion():
    torch.manual_seed(0)
    lengths = [1000, 1, 0, 64, 65, 127, 4097]
    rows = [torch.randn(n, dtype=torch.float64).tolist() for n in lengths]
    x = torch.tensor([v for row in rows for v in row], dtype=torch.float64)
    expected = torch.tensor([v for row in serial(rows, 0.999) for v in row], dtype=torch.float64)
    for chunk in (4, 64, 128):
        found = discounted(x, torch.tensor(lengths), 0.999, chunk=chunk)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_long_sum_of_float32_keeps_its_last_digits():
    x = torch.full((200_000,), 0.1)
    exact = 0.1 * torch.arange(200_000, 0, -1, dtype=torch.float64)
    found = discounted(x, torch.tensor([200_000]), 1.0).double()
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=0)


def test_float32_tokens_give_float32_numbers_whatever_the_rewards_are():
    kl, mask = torch.tensor([0.5, 0.25]), Ragged(torch.ones(2), torch.tensor([2]))
    for rewards in (torch.tensor([4.0]), torch.tensor([4.0], dtype=torch.float64)):
        found = reinforce_plus_plus(kl, mask, rewards, 0.5)
        assert found.dtype == torch.float32
        assert found.tolist() == [-0.5 + 0.5 * 3.75, 3.75]


def test_a_discount_whose_power_underflows_is_harmless():
    x = torch.ones(300)
    found = discounted(x, torch.tensor([300]), 1e-30)
    assert found.tolist() == [1.0] * 300


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_an_empty_batch_has_no_returns(lengths):
    empty, lengths = torch.zeros(0), torch.tensor(lengths, dtype=torch.int64)
    mask, rewards = Ragged(empty, lengths), torch.ones(lengths.numel())
    assert discounted(empty, lengths, 0.9).tolist() == []
    assert reinforce_plus_plus(empty, mask, rewards, 0.9).tolist() == []
    advantages, returns = generalized(empty, empty, mask, rewards, gamma=0.9, gae_lambda=0.9)
    assert (advantages.tolist(), returns.tolist()) == ([], [])


def test_a_chunk_of_one_token_is_refused():
    with pytest.raises(ValueError, match="chunk is 1, must be at least 2"):
        discounted(torch.ones(2), torch.tensor([2]), 0.5, chunk=1)


def test_gradients_of_the_scan():
    torch.manual_seed(0)
    x = torch.randn(11, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([7, 0, 1, 3])
    assert torch.autograd.gradcheck(lambda v: discounted(v, lengths, 0.9, chunk=2), (x,))


def test_gradients_of_the_estimates():
    torch.manual_seed(0)
    kl, values, rewards = (
        torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (6, 6, 3)
    )
    mask = ragged([1, 0, 1, 0, 1, 1], [3, 1, 2])

    def gae(k, v, r):
        return generalized(k, v, mask, r, gamma=0.9, gae_lambda=0.8)

    assert torch.autograd.gradcheck(gae, (kl, values, rewards))
    assert torch.autograd.gradcheck(
        lambda k, r: reinforce_plus_plus(k, mask, r, 0.9), (kl, rewards)
    )


def test_reinforce_plus_plus_by_hand_with_a_hole():
    mask = ragged([1, 0, 1, 0], [4])
    kl = torch.tensor([0.5, 9.0, 0.25, 9.0]).double()
    found = reinforce_plus_plus(kl, mask, torch.tensor([4.0]).double(), 0.5)
    # rho = -0.5, and -0.25 + 4 at the last trained token; the hole is not discounted
    assert found.tolist() == [-0.5 + 0.5 * 3.75, 0.0, 3.75, 0.0]


def test_gae_by_hand_with_holes_and_a_masked_end():
    mask = ragged([1, 0, 1, 0, 1], [4, 1])
    values = torch.tensor([1.0, 100.0, 2.0, 100.0, 3.0]).double()
    rewards = torch.tensor([4.0, 5.0]).double()
    advantages, returns = generalized(
        torch.zeros(5).double(), values, mask, rewards, gamma=0.5, gae_lambda=0.5
    )
    # delta = 0 + 0.5 * 2 - 1 = 0 and 4 - 2 = 2; the other response 5 - 3
    assert advantages.tolist() == [0.0 + 0.25 * 2.0, 0.0, 2.0, 0.0, 2.0]
    assert returns.tolist() == [1.5, 0.0, 4.0, 0.0, 5.0]


@given(batches(), DISCOUNTS, DISCOUNTS)
@settings(max_examples=150, deadline=None)
def test_gae_equals_its_recursion(batch, gamma, gae_lambda):
    kl, values, mask, rewards = batch
    rows = (Ragged(kl, mask.lengths), Ragged(values, mask.lengths), mask, rewards)
    expected = serial_gae(*rows, gamma, gae_lambda)
    found = generalized(kl, values, mask, rewards, gamma=gamma, gae_lambda=gae_lambda)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(
            mine, torch.tensor(reference, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


@given(batches(), DISCOUNTS)
@settings(max_examples=100, deadline=None)
def test_reinforce_plus_plus_is_gae_without_values_and_decay(batch, gamma):
    kl, _, mask, rewards = batch
    found = reinforce_plus_plus(kl, mask, rewards, gamma)
    zeros = torch.zeros_like(kl)
    expected, _ = generalized(kl, zeros, mask, rewards, gamma=gamma, gae_lambda=1.0)
    torch.testing.assert_close(found, expected)


@given(batches(), DISCOUNTS)
@settings(max_examples=100, deadline=None)
def test_what_stands_at_untrained_tokens_does_not_matter(batch, gamma):
    kl, values, mask, rewards = batch
    odd = torch.tensor([nan, inf, -inf, 1e30], dtype=torch.float64).repeat(kl.numel())
    spoilt = [torch.where(mask.values > 0, x, odd[: kl.numel()]) for x in (kl, values)]
    clean = generalized(kl, values, mask, rewards, gamma=gamma, gae_lambda=0.9)
    found = generalized(*spoilt, mask, rewards, gamma=gamma, gae_lambda=0.9)
    for mine, reference in zip(found, clean, strict=True):
        assert mine.tolist() == reference.tolist()
    assert (found[0][mask.values == 0] == 0).all()


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_response_does_not_feel_its_neighbours(batch, random):
    kl, values, mask, rewards = batch
    order = list(range(rewards.numel()))
    random.shuffle(order)

    def estimate(rows):
        picked = [Ragged(x, mask.lengths).select(rows).values for x in (kl, values)]
        where = mask.select(rows)
        found = generalized(*picked, where, rewards[rows], gamma=0.9, gae_lambda=0.8)
        return Ragged(found[0], where.lengths).split()

    whole, shuffled = estimate(list(range(len(order)))), estimate(order)
    for place, row in enumerate(order):
        torch.testing.assert_close(shuffled[place], whole[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(estimate([row])[0], whole[row], rtol=1e-12, atol=1e-12)


def test_returns_of_rewards_per_token():
    mask = ragged([1, 0, 1, 1], [3, 1])
    x = torch.tensor([1.0, 50.0, 2.0, 3.0]).double()
    assert discounted_returns(x, mask, 0.5).tolist() == [2.0, 0.0, 2.0, 3.0]
