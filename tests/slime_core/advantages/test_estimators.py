import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from slime_core.advantages import estimate
from slime_core.advantages.custom import custom_advantages
from slime_core.advantages.returns import discounted, generalized
from slime_core.batch import PolicySignals, Ragged
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.errors import PluginError
from slime_core.reduce import LocalReduce
from slime_core.types import SampleGroup
from slime_testing import make_sample


class ThreadReduce:
    """Adds over threads that stand for ranks."""

    def __init__(self, world):
        self.barrier, self.slots = threading.Barrier(world), [None] * world

    def rank(self, index):
        reduce = LocalReduce()

        def add(x):
            self.slots[index] = x
            self.barrier.wait()
            total = sum(self.slots)
            self.barrier.wait()
            return total

        reduce.sum = add
        return reduce


def make_batch(config, *samples):
    return collate([SampleGroup(0, samples)], reward_key=None, advantage=config)


def signals(batch, kl=0.0, values=None):
    zeros = torch.zeros_like(batch.loss_mask.values)
    lengths = batch.loss_mask.lengths
    return PolicySignals(
        Ragged(zeros, lengths),
        ref_log_probs=Ragged(zeros - kl, lengths),
        values=values and Ragged(torch.tensor(values), lengths),
    )


def advantages(config, batch, **given):
    targets = estimate(batch, signals(batch, **given), config, PolicyLossConfig(), LocalReduce())
    return [row.tolist() for row in targets.advantages.split()]


def test_grpo_repeats_the_reward_of_the_response():
    config = AdvantageConfig(normalize_grpo_std=False)
    batch = make_batch(config, make_sample(2, reward=3.0), make_sample(1, reward=1.0))
    assert advantages(config, batch) == [[1.0, 1.0], [-1.0]]


def test_reinforce_plus_plus_by_hand():
    config = AdvantageConfig(advantage_estimator="reinforce_plus_plus", kl_coef=0.1, gamma=0.5)
    batch = make_batch(config, make_sample(3, reward=4.0, loss_mask=[1, 1, 0]))
    # rho = [-0.2, -0.2 + 4, 0] with kl = 2; returns 3.8, and -0.2 + 0.5 * 3.8
    assert advantages(config, batch, kl=2.0)[0] == pytest.approx([1.7, 3.8, 0.0])


def test_a_response_that_is_not_trained_on_has_no_return():
    config = AdvantageConfig(advantage_estimator="reinforce_plus_plus")
    batch = make_batch(config, make_sample(2, remove_sample=True), make_sample(1, reward=2.0))
    assert advantages(config, batch) == [[0.0, 0.0], [2.0]]


def test_the_baseline_variant_subtracts_the_group_mean_and_the_penalty():
    config = AdvantageConfig(advantage_estimator="reinforce_plus_plus_baseline", kl_coef=0.1)
    batch = make_batch(config, make_sample(1, reward=3.0), make_sample(2, reward=1.0))
    assert [x for row in advantages(config, batch, kl=2.0) for x in row] == pytest.approx(
        [0.8, -1.2, -1.2]
    )


def test_discounted_sums_by_hand():
    x = torch.tensor([1.0, 2.0, 4.0])
    assert discounted(x, 0.5).tolist() == [3.0, 4.0, 4.0]
    assert discounted(x, 1.0).tolist() == [7.0, 6.0, 4.0]
    assert discounted(x, 0.0).tolist() == [1.0, 2.0, 4.0]


def test_gae_against_its_definition():
    torch.manual_seed(0)
    rewards, values = torch.randn(6).double(), torch.randn(6).double()
    gamma, decay = 0.9, 0.7
    ahead = [*values.tolist()[1:], 0.0]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, ahead, values, strict=True)]
    expected = [
        sum((gamma * decay) ** (k - t) * delta[k] for k in range(t, 6)).item() for t in range(6)
    ]
    found, returns = generalized(rewards, values, gamma=gamma, gae_lambda=decay)
    assert found.tolist() == pytest.approx(expected)
    torch.testing.assert_close(returns, found + values)


def test_ppo_puts_the_reward_on_the_last_trained_token():
    config = AdvantageConfig(advantage_estimator="ppo", lambd=0.0)
    batch = make_batch(config, make_sample(3, reward=4.0, loss_mask=[1, 1, 0]))
    # delta = [0 + 2 - 1, 4 + 3 - 2, 0 + 0 - 3]
    assert advantages(config, batch, values=[1.0, 2.0, 3.0]) == [[1.0, 5.0, -3.0]]


def test_whitened_advantages_do_not_depend_on_who_holds_which_sample():
    config = AdvantageConfig(normalize_advantages=True)
    samples = [make_sample(n, reward=r) for n, r in [(3, 1.0), (1, 0.0), (2, 0.0), (4, 2.0)]]
    batch = make_batch(config, *samples)
    whole = advantages(config, batch)
    parts = [batch.select([0, 3]), batch.select([1, 2])]
    ranks = ThreadReduce(2)

    def on_rank(i):
        targets = estimate(parts[i], signals(parts[i]), config, PolicyLossConfig(), ranks.rank(i))
        return [row.tolist() for row in targets.advantages.split()]

    with ThreadPoolExecutor(2) as pool:
        found = [row for rows in pool.map(on_rank, range(2)) for row in rows]
    for mine, row in zip(found, [whole[0], whole[3], whole[1], whole[2]], strict=True):
        assert mine == pytest.approx(row)


def test_advantages_of_your_own_are_checked_and_whitened(tmp_path):
    (tmp_path / "adv.py").write_text(
        "def f(args, rollout_data):\n"
        "    rows = [[r + k for k in row] for r, row in\n"
        "            zip(rollout_data['rewards'], rollout_data['kl'])]\n"
        "    rollout_data['advantages'] = rollout_data['returns'] = rows[: args.keep]\n"
    )
    config = AdvantageConfig(kl_coef=0.5, normalize_rewards=False)
    batch = make_batch(config, make_sample(1, reward=3.0), make_sample(2, reward=1.0))

    def run(keep, **changes):
        custom = custom_advantages(str(tmp_path / "adv.py"), {"keep": keep})
        targets = estimate(
            batch,
            signals(batch, kl=2.0),
            replace(config, **changes),
            PolicyLossConfig(),
            LocalReduce(),
            custom=custom,
        )
        return targets.advantages.values.tolist()

    assert run(2) == [5.0, 3.0, 3.0]
    assert sum(run(2, normalize_advantages=True)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(
        PluginError, match=r"one vector per sample of \[1, 2\] tokens, but set \[1\]"
    ):
        run(1)
