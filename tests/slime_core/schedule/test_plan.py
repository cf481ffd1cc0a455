import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.config.batch import BatchConfig
from slime_core.errors import ConfigError
from slime_core.schedule.flops import ModelCost
from slime_core.schedule.plan import ParallelLayout, plan
from slime_core.types import SampleGroup
from slime_testing import make_sample


def make_batch(responses, rollout_ids=None):
    """Prompts of 2 tokens; sample i answers with ``responses[i]`` tokens."""
    ids = rollout_ids or range(len(responses))
    samples = tuple(
        make_sample(n, index=i, rollout_id=r)
        for i, (n, r) in enumerate(zip(responses, ids, strict=True))
    )
    return collate([SampleGroup(0, samples)], reward_key=None, advantage=AdvantageConfig())


def test_static_microbatches_by_hand():
    result = plan(
        make_batch([1] * 8),
        ParallelLayout(dp=2),
        BatchConfig(global_batch_size=4, micro_batch_size=2),
    )
    first, second = result.steps
    assert first.microbatches == (((0, 2),), ((1, 3),))
    assert second.microbatches == (((4, 6),), ((5, 7),))
    assert (first.counts.num_rollouts, first.counts.num_tokens) == (4, 4.0)
    assert result.num_dropped == 0


def test_dynamic_microbatches_fill_the_cap_of_all_context_ranks():
    config = BatchConfig(global_batch_size=4, use_dynamic_batch_size=True, max_tokens_per_gpu=10)
    batch = make_batch([8, 8, 8, 8])
    alone = plan(batch, ParallelLayout(), config).steps[0]
    paired = plan(batch, ParallelLayout(cp=2), config).steps[0]
    assert [len(rows) for rows in alone.microbatches[0]] == [1, 1, 1, 1]
    assert [len(rows) for rows in paired.microbatches[0]] == [2, 2]


def test_segments_of_a_rollout_share_a_step():
    batch = make_batch([1, 2, 3, 4, 5], rollout_ids=[7, 9, 7, 8, 9])
    result = plan(batch, ParallelLayout(), BatchConfig(global_batch_size=1))
    assert [sorted(r for mb in s.microbatches[0] for r in mb) for s in result.steps] == [
        [0, 2],
        [1, 4],
        [3],
    ]
    assert [s.counts.num_tokens for s in result.steps] == [4.0, 7.0, 4.0]


def test_whole_rollouts_share_a_microbatch():
    batch = make_batch([1, 2, 3, 4, 5, 6], rollout_ids=[0, 0, 1, 1, 2, 2])
    config = BatchConfig(global_batch_size=3, micro_batch_size=1)
    step = plan(batch, ParallelLayout(), config, whole_rollouts=True).steps[0]
    assert step.microbatches == (((0, 1), (2, 3), (4, 5)),)
    config = BatchConfig(global_batch_size=3, micro_batch_size=5)
    step = plan(batch, ParallelLayout(), config, whole_rollouts=True).steps[0]
    assert step.microbatches == (((0, 1), (2, 3, 4, 5)),)


def test_a_rollout_that_is_too_long_for_the_budget_is_alone():
    batch = make_batch([1, 1, 9, 9, 1, 1], rollout_ids=[0, 0, 1, 1, 2, 2])
    config = BatchConfig(global_batch_size=3, use_dynamic_batch_size=True, max_tokens_per_gpu=12)
    step = plan(batch, ParallelLayout(), config, whole_rollouts=True).steps[0]
    assert step.microbatches == (((2, 3), (0, 1, 4, 5)),)


def test_work_decides_with_balance_by_flops_and_tokens_without():
    batch = make_batch([58, 28, 28, 28, 28])  # 60 tokens, and four times 30
    fields = {"global_batch_size": 5, "use_dynamic_batch_size": True, "max_tokens_per_gpu": 180}
    quadratic = ModelCost(per_token=1.0, per_square=1.0)

    def sizes(**changes):
        config = BatchConfig(**fields, balance_data=True, **changes)
        step = plan(batch, ParallelLayout(dp=2), config, cost=quadratic).steps[0]
        return sorted(len(rows) for rank in step.microbatches for rows in rank)

    assert sizes(balance_by_flops=True) == [1, 4]
    assert sizes() == [2, 3]


def test_left_over_samples_are_counted():
    batch = make_batch([1, 1, 1, 1, 1], rollout_ids=[0, 1, 2, 2, 2])
    result = plan(batch, ParallelLayout(), BatchConfig(global_batch_size=2))
    assert (len(result.steps), result.num_dropped) == (1, 3)


def test_too_few_rollouts_for_a_step_name_the_flag():
    with pytest.raises(ConfigError, match="--global-batch-size is 4 but the iteration holds 3"):
        plan(make_batch([1] * 3), ParallelLayout(), BatchConfig(global_batch_size=4))


def test_interleaved_pipelines_get_whole_rounds():
    layout = ParallelLayout(pp=4, vpp=2)
    result = plan(make_batch([1] * 6), layout, BatchConfig(global_batch_size=6))
    assert len(result.steps[0].microbatches[0]) == 8


def test_balanced_ranks_carry_equal_tokens():
    config = BatchConfig(global_batch_size=4, balance_data=True)
    step = plan(make_batch([98, 1, 2, 97]), ParallelLayout(dp=2), config).steps[0]
    assert sorted(sorted(r for mb in share for r in mb) for share in step.microbatches) == [
        [0, 1],
        [2, 3],
    ]


def test_the_busiest_rank_does_as_little_as_it_can():
    # of 6, 5, 5 and 4 tokens first fit puts 11 on one rank and 9 on the other
    config = BatchConfig(
        global_batch_size=4, use_dynamic_batch_size=True, max_tokens_per_gpu=12, balance_data=True
    )
    step = plan(make_batch([4, 3, 3, 2]), ParallelLayout(dp=2), config).steps[0]
    ranks = [sorted(r for mb in share for r in mb) for share in step.microbatches]
    assert sorted(ranks) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("lengths", "limit", "ranks"),
    [
        # Work is L + L**2: 30, 30, 42, 30, 42. First fit gives one rank 102, pairs of bins 90.
        ([5, 5, 6, 5, 6], 11, [[0, 1, 3], [2, 4]]),
        # 156 and three times 56: any two bins of four that hold one each are 212, ranks first 168.
        ([12, 7, 7, 7], 14, [[0], [1, 2, 3]]),
    ],
)
def test_work_is_evened_under_the_limit_of_tokens_over_bins_and_over_ranks(lengths, limit, ranks):
    config = BatchConfig(
        global_batch_size=len(lengths), use_dynamic_batch_size=True, max_tokens_per_gpu=limit,
        balance_data=True, balance_by_flops=True,
    )  # fmt: skip
    batch, cost = make_batch([n - 2 for n in lengths]), ModelCost(per_token=1.0, per_square=1.0)
    step = plan(batch, ParallelLayout(dp=2), config, cost=cost).steps[0]
    found = [sorted(row for rows in share for row in rows) for share in step.microbatches]
    assert sorted(found) == ranks


@st.composite
def cases(draw):
    """(response length, rollout) of samples, and what a plan is asked for."""
    samples = draw(
        st.lists(st.tuples(st.integers(1, 60), st.integers(0, 6)), min_size=1, max_size=24)
    )
    balanced, vpp = draw(st.booleans()), draw(st.sampled_from([1, 2]))
    layout = ParallelLayout(dp=draw(st.integers(1, 3)), pp=2, vpp=vpp, cp=draw(st.integers(1, 2)))
    config = BatchConfig(
        global_batch_size=max(1, len({r for _, r in samples}) // 2),
        micro_batch_size=draw(st.integers(1, 4)),
        use_dynamic_batch_size=draw(st.booleans()),
        max_tokens_per_gpu=40,
        balance_data=balanced,
        balance_by_flops=balanced and draw(st.booleans()),
    )
    return samples, layout, config, draw(st.booleans())


def planned(case):
    samples, layout, config, whole = case
    batch = make_batch([n for n, _ in samples], [r for _, r in samples])
    return batch, layout, config, whole, plan(batch, layout, config, whole_rollouts=whole)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_sample_is_trained_on_exactly_once_or_counted_as_dropped(case):
    batch, layout, config, _, result = planned(case)
    used = [row for rank in range(layout.dp) for row in result.rows(rank)]
    assert len(used) == len(set(used)) == batch.num_samples - result.num_dropped
    rollouts = len(set(batch.rollout_ids.tolist()))
    assert len(result.steps) == rollouts // config.global_batch_size
    for step in result.steps:
        rows = [row for share in step.microbatches for mb in share for row in mb]
        assert step.counts.num_samples == len(rows)
        assert step.counts.num_tokens == sum(batch.response_lengths[row].item() for row in rows)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_siblings_share_a_step_and_a_microbatch_if_asked_to(case):
    batch, _, config, whole, result = planned(case)
    places = {}
    for number, step in enumerate(result.steps):
        seen = set()
        for rank, share in enumerate(step.microbatches):
            for mb, rows in enumerate(share):
                for row in rows:
                    rollout = batch.rollout_ids[row].item()
                    seen.add(rollout)
                    places.setdefault(rollout, set()).add((number, rank, mb) if whole else number)
        assert len(seen) == config.global_batch_size == step.counts.num_rollouts
    assert all(len(place) == 1 for place in places.values())


@given(cases())
@settings(max_examples=200, deadline=None)
def test_ranks_have_as_many_microbatches_and_none_exceeds_its_budget(case):
    batch, layout, config, whole, result = planned(case)
    for step in result.steps:
        counts = {len(share) for share in step.microbatches}
        assert len(counts) == 1
        assert counts.pop() % layout.microbatch_multiple == 0
        for rows in (rows for share in step.microbatches for rows in share):
            ids = [batch.rollout_ids[row].item() for row in rows]
            if len(set(ids) if whole else ids) <= 1:
                continue  # what alone is too long has a microbatch to itself
            if config.use_dynamic_batch_size:
                assert sum(batch.tokens.lengths[list(rows)].tolist()) <= 40 * layout.cp
            else:
                assert len(rows) <= config.micro_batch_size


@given(st.lists(st.integers(1, 9), min_size=4, max_size=12), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_ranks_plan_points_into_its_own_rows(responses, dp):
    result = plan(make_batch(responses), ParallelLayout(dp=dp), BatchConfig(global_batch_size=2))
    for rank in range(dp):
        rows = result.rows(rank)
        local = [
            tuple(rows[i] for i in microbatch)
            for step in result.for_rank(rank)
            for microbatch in step.microbatches
        ]
        assert local == [mb for step in result.steps for mb in step.microbatches[rank]]
