import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf, nan
from typing import get_args

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from slime_core.advantages import estimate
from slime_core.advantages.custom import custom_advantages
from slime_core.batch import PolicySignals, Ragged
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig, Estimator, PolicyLossConfig
from slime_core.config.reference import DistillationConfig
from slime_core.errors import PluginError, SampleError
from slime_core.reduce import LocalReduce
from slime_core.types import SampleGroup
from slime_testing import make_sample


class ThreadReduce:
    """Adds over threads that stand for ranks."""

    def __init__(self, world):
        self.barrier, self.slots = threading.Barrier(world, timeout=60), [None] * world

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


def test_ppo_puts_the_reward_on_the_last_trained_token_and_ends_there():
    config = AdvantageConfig(advantage_estimator="ppo", lambd=0.0)
    batch = make_batch(config, make_sample(3, reward=4.0, loss_mask=[1, 1, 0]))
    # delta = [0 + 2 - 1, 4 + 0 - 2]; the value after the last trained token counts for nothing
    assert advantages(config, batch, values=[1.0, 2.0, 3.0]) == [[1.0, 2.0, 0.0]]


def test_ppo_returns_are_advantages_plus_values():
    config = AdvantageConfig(advantage_estimator="ppo", gamma=0.5, lambd=0.5, kl_coef=0.1)
    samples = [
        make_sample(3, reward=4.0, loss_mask=[1, 0, 1]),
        make_sample(2, remove_sample=True),
        make_sample(1, reward=1.0),
    ]
    batch = make_batch(config, *samples)
    given = signals(batch, kl=2.0, values=[1.0, 100.0, 2.0, 7.0, 7.0, 3.0])
    targets = estimate(batch, given, config, PolicyLossConfig(), LocalReduce())
    # rho = -0.2, and -0.2 + 4; delta = -0.2 + 0.5 * 2 - 1 and 3.8 - 2; the last one 0.8 - 3
    expected = [-0.2 + 0.25 * 1.8, 0.0, 1.8, 0.0, 0.0, -2.2]
    assert targets.advantages.values.tolist() == pytest.approx(expected)
    assert targets.returns.values.tolist() == pytest.approx([1.25, 0.0, 3.8, 0.0, 0.0, 0.8])


def test_one_fully_masked_batch_gives_zeros_for_every_estimator():
    for name in ("reinforce_plus_plus", "ppo"):
        config = AdvantageConfig(advantage_estimator=name, normalize_advantages=True)
        batch = make_batch(config, make_sample(2, remove_sample=True), make_sample(0, tokens=[1]))
        assert advantages(config, batch, values=[1.0, 2.0]) == [[0.0, 0.0], []]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rloo", [2.5, -0.5, -2.0]),
        ("remax", [3.5, 1.5, 0.5]),
        ("maxrl", [1.0, -0.2, -0.8]),
    ],
)
def test_group_estimators_repeat_their_reward_over_the_response(name, expected):
    # baselines: the others' mean; 1.5; and maxrl's mean 5
    rewards = {"maxrl": [10.0, 4.0, 1.0]}.get(name, [5.0, 3.0, 2.0])
    config = AdvantageConfig(advantage_estimator=name)
    samples = [make_sample(n, reward=r) for n, r in zip((2, 1, 3), rewards, strict=True)]
    group = SampleGroup(0, tuple(samples), baseline=1.5)
    batch = collate([group], reward_key=None, advantage=config)
    rows = advantages(config, batch)
    assert [len(row) for row in rows] == [2, 1, 3]
    for row, value in zip(rows, expected, strict=True):
        assert row == pytest.approx([value] * len(row))


def test_gdpo_whitens_the_sum_of_normalised_rewards():
    config = AdvantageConfig(
        advantage_estimator="gdpo",
        gdpo_reward_keys=("right", "short"),
        gdpo_reward_weights=(1.0, 0.5),
        normalize_advantages=True,
    )
    rewards = [{"right": 1.0, "short": 0.0}, {"right": 0.0, "short": 30.0}]
    batch = make_batch(config, *(make_sample(1, reward=r) for r in rewards))
    # each reward is +-1 / sqrt(2) in its group; their sum +-0.5 / sqrt(2), and whitened as one
    assert batch.rewards.tolist() == pytest.approx([0.5 / 2**0.5, -0.5 / 2**0.5], rel=1e-4)
    assert [x for row in advantages(config, batch) for x in row] == pytest.approx(
        [0.5**0.5, -(0.5**0.5)], rel=1e-4
    )


DISTIL = DistillationConfig(use_opd=True, opd_kl_coef=0.5)


def with_teacher(batch, values):
    given = signals(batch, kl=2.0, values=[1.0] * batch.loss_mask.values.numel())
    return replace(given, teacher_log_probs=Ragged(torch.tensor(values), batch.loss_mask.lengths))


@pytest.mark.parametrize("name", get_args(Estimator))
def test_distillation_adds_its_term_to_every_estimator(name):
    config = AdvantageConfig(advantage_estimator=name, gdpo_reward_keys=("a",))
    samples = [make_sample(2, reward={"a": r}, loss_mask=[1, 0]) for r in (1.0, 0.0)]
    group = SampleGroup(0, tuple(samples), baseline=0.5)
    batch = collate([group], reward_key="a", advantage=config)
    given = with_teacher(batch, [-3.0, nan, 1.0, nan])

    def run(**options):
        found = estimate(batch, given, config, PolicyLossConfig(), LocalReduce(), **options)
        return found.advantages.values

    # the policy's log-probabilities are 0
    shift = run(distillation=DISTIL) - run()
    assert shift.tolist() == [-0.5 * 3.0, 0.0, 0.5 * 1.0, 0.0]


def test_distillation_comes_before_whitening_and_after_advantages_of_your_own():
    config = AdvantageConfig(normalize_advantages=True)
    batch = make_batch(config, make_sample(1, reward=1.0), make_sample(2, reward=1.0))
    given = with_teacher(batch, [2.0, 4.0, 6.0])

    def zeros(batch, signals, kl):
        return {"advantages": list(kl), "returns": list(kl)}

    options = {"custom": zeros, "distillation": DISTIL}
    targets = estimate(batch, given, config, PolicyLossConfig(), LocalReduce(), **options)
    # 1, 2, 3 whitened
    assert targets.advantages.values.tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert targets.returns.values.tolist() == [0.0] * 3


def test_the_teacher_of_the_trainer_comes_before_that_of_the_rollout():
    config = AdvantageConfig()
    batch = make_batch(config, make_sample(1, teacher_log_probs=[-1.0]))
    for given, expected in ((signals(batch), -0.5), (with_teacher(batch, [2.0]), 1.0)):
        targets = estimate(
            batch, given, config, PolicyLossConfig(), LocalReduce(), distillation=DISTIL
        )
        assert targets.advantages.values.tolist() == [expected]


def test_distillation_without_a_teacher_is_refused():
    batch = make_batch(AdvantageConfig(), make_sample(1))
    with pytest.raises(SampleError, match="no sample has `teacher_log_probs`, which --use-opd"):
        estimate(
            batch,
            signals(batch),
            AdvantageConfig(),
            PolicyLossConfig(),
            LocalReduce(),
            distillation=DISTIL,
        )


@pytest.mark.parametrize("field", ["log_probs", "ref_log_probs", "teacher_log_probs", "values"])
@pytest.mark.parametrize("odd", [nan, inf, -inf])
def test_what_is_not_finite_is_refused_where_it_is_trained_on(field, odd):
    config = AdvantageConfig(advantage_estimator="ppo", kl_coef=0.1)
    samples = [make_sample(2, index=5), make_sample(3, index=6, loss_mask=[1, 1, 0])]
    batch = make_batch(config, *samples)
    clean = with_teacher(batch, [0.0] * 5)

    def run(place):
        values = getattr(clean, field).values.clone()
        values[place] = odd
        given = replace(clean, **{field: Ragged(values, batch.loss_mask.lengths)})
        return estimate(
            batch, given, config, PolicyLossConfig(), LocalReduce(), distillation=DISTIL
        )

    with pytest.raises(
        SampleError, match=rf"sample 6: {field} of response token 1, .* is -?(nan|inf)"
    ):
        run(3)
    found, reference = (
        run(4),
        estimate(batch, clean, config, PolicyLossConfig(), LocalReduce(), distillation=DISTIL),
    )
    assert found.advantages.values.tolist() == reference.advantages.values.tolist()
    assert found.returns.values.tolist() == reference.returns.values.tolist()


def test_a_reward_that_is_not_finite_is_refused_where_it_is_trained_on():
    samples = [make_sample(1, index=3), make_sample(1, index=4, remove_sample=True)]
    batch = make_batch(AdvantageConfig(), *samples)
    with pytest.raises(SampleError, match="sample 3: rewards of response token 0"):
        advantages(AdvantageConfig(), replace(batch, rewards=torch.tensor([nan, 0.0])))
    masked = replace(batch, rewards=torch.tensor([1.0, nan]))
    assert advantages(AdvantageConfig(), masked) == [[1.0], [0.0]]


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


@pytest.mark.parametrize("name", get_args(Estimator))
@over(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.integers(0, 31)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2**31),
)
@settings(max_examples=12, deadline=None)
def test_every_estimator_is_the_same_over_one_rank_and_over_four(name, rows, seed):
    """Rows: response length, group, owning rank, bits of the mask; a rank may own nothing."""
    config = AdvantageConfig(
        advantage_estimator=name,
        gdpo_reward_keys=("a", "b"),
        normalize_advantages=True,
        gamma=0.9,
        lambd=0.8,
        kl_coef=0.1,
    )
    samples = [
        make_sample(n, {"a": i % 3, "b": i % 2}, loss_mask=[bits >> t & 1 for t in range(n)])
        for i, (n, _, _, bits) in enumerate(rows)
    ]
    groups = [SampleGroup(row[1], (s,), 0.5) for row, s in zip(rows, samples, strict=True)]
    batch = collate(groups, reward_key="a", advantage=config)
    generator = torch.Generator().manual_seed(seed)
    size, lengths = batch.loss_mask.values.numel(), batch.loss_mask.lengths
    policy, reference, teacher, values = torch.randn(4, size, generator=generator)
    given = PolicySignals(*(Ragged(x, lengths) for x in (policy, reference, teacher, values)))

    def run(picked, reduce):
        part = PolicySignals(
            *(x.select(picked) for x in (given.log_probs, given.ref_log_probs)),
            *(x.select(picked) for x in (given.teacher_log_probs, given.values)),
        )
        options = {"distillation": DISTIL}
        return estimate(batch.select(picked), part, config, PolicyLossConfig(), reduce, **options)

    whole = run(range(len(rows)), LocalReduce()).advantages.split()
    owned = [[i for i, row in enumerate(rows) if row[2] == rank] for rank in range(4)]
    ranks = ThreadReduce(4)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rank: run(owned[rank], ranks.rank(rank)), range(4)))
    for mine, picked in zip(found, owned, strict=True):
        for row, sample in zip(mine.advantages.split(), picked, strict=True):
            torch.testing.assert_close(row, whole[sample], rtol=1e-5, atol=1e-5)


def test_advantages_of_your_own_see_the_teacher_of_the_trainer(tmp_path):
    (tmp_path / "adv.py").write_text(
        "def f(args, rollout_data):\n"
        "    d = rollout_data\n"
        "    d['advantages'] = d['returns'] = d['teacher_log_probs']\n"
    )
    batch = make_batch(AdvantageConfig(), make_sample(2, teacher_log_probs=[8.0, 9.0]))
    custom = custom_advantages(str(tmp_path / "adv.py"), {})
    given = with_teacher(batch, [1.0, 2.0])
    found = estimate(
        batch, given, AdvantageConfig(), PolicyLossConfig(), LocalReduce(), custom=custom
    )
    assert found.advantages.values.tolist() == [1.0, 2.0]


def test_advantages_of_your_own_have_to_be_finite():
    def custom(batch, signals, kl):
        return {name: [torch.full((2,), nan)] for name in ("advantages", "returns")}

    batch = make_batch(AdvantageConfig(), make_sample(2, index=9))
    with pytest.raises(SampleError, match="sample 9: advantages of response token 0"):
        estimate(
            batch,
            signals(batch),
            AdvantageConfig(),
            PolicyLossConfig(),
            LocalReduce(),
            custom=custom,
        )


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
