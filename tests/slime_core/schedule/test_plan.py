import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.config.batch import BatchConfig
from slime_core.errors import ConfigError
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


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), min_size=1, max_size=24),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_is_trained_on_exactly_once(samples, dp, vpp, dynamic, balanced):
    batch = make_batch([n for n, _ in samples], [r for _, r in samples])
    rollouts = len({r for _, r in samples})
    config = BatchConfig(
        global_batch_size=max(1, rollouts // 2),
        micro_batch_size=2,
        use_dynamic_batch_size=dynamic,
        max_tokens_per_gpu=40,
        balance_data=balanced,
        balance_by_flops=balanced,
    )
    result = plan(batch, ParallelLayout(dp=dp, pp=2, vpp=vpp), config)
    used = [row for rank in range(dp) for row in result.rows(rank)]
    assert len(used) == len(set(used)) == len(samples) - result.num_dropped
    for step in result.steps:
        counts = {len(share) for share in step.microbatches}
        assert len(counts) == 1
        assert counts.pop() % (2 if vpp > 1 else 1) == 0
        if dynamic:
            sizes = [sum(samples[r][0] + 2 for r in rows) for s in step.microbatches for rows in s]
            assert max(sizes) <= 40


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
