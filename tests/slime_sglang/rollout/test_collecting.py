import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from slime_core.data.filters import DynamicFilterOutput
from slime_core.data.stream import PromptStream
from slime_core.errors import EngineError
from slime_core.types import Sample, SampleGroup, Status
from slime_sglang.rollout import collecting
from slime_sglang.rollout.collecting import (
    Collected,
    CollectSpec,
    FilterError,
    GenerationError,
    collect,
)
from slime_sglang.rollout.groups import GroupWorker
from slime_testing.desk import Desk, index_reward, make_source


def run(desk: Desk, source: PromptStream, **changes: Any) -> Collected:
    fields = {"iteration": 3, "num_groups": 4, "num_groups_at_once": 4, **changes}
    return asyncio.run(
        collect(source, GroupWorker(desk, index_reward), desk, CollectSpec(**fields))
    )


def indices(groups: Sequence[SampleGroup]) -> list[int]:
    return [group.group_index for group in groups]


def slow_first(sample: Sample) -> int:
    return 5 - (sample.group_index or 0) % 5


def test_groups_come_back_in_order_whoever_finishes_first() -> None:
    collected = run(Desk(slow_first), make_source())
    assert indices(collected.groups) == [0, 1, 2, 3]
    assert [s.reward for g in collected.groups for s in g.samples] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert collected.metrics["rollout/num_surplus_groups"] == 0


def test_dropped_groups_are_counted_by_reason_and_replaced() -> None:
    def odd_only(samples: Sequence[Sample]) -> DynamicFilterOutput:
        even = (samples[0].group_index or 0) % 2 == 0
        return DynamicFilterOutput(keep=not even, reason="even" if even else None)

    collected = run(Desk(), make_source(), keep=odd_only, num_groups_at_once=3)
    assert len(collected.groups) == 4
    assert all(index % 2 for index in indices(collected.groups))
    assert collected.metrics["rollout/dynamic_filter/drop_even"] >= 4
    assert len(collected.every_group) >= 8


def test_a_filter_that_drops_everything_ends_the_run_and_is_named_with_its_reasons(caplog) -> None:
    def none_of_them(samples: Sequence[Sample]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=False, reason="zero_std_0.0")

    with pytest.raises(FilterError) as raised:
        run(Desk(), make_source(), keep=none_of_them, max_batches=6)
    assert "rollout 3: 0 of 4 groups are kept of 24 generated" in str(raised.value)
    assert "dropped: zero_std_0.0 24. --dynamic-sampling-max-batches 6" in str(raised.value)
    assert "0 of 4 groups are kept of 20 generated; dropped: zero_std_0.0 20" in caplog.text


def test_a_filter_that_keeps_enough_in_the_last_batch_is_not_stopped() -> None:
    def late(samples: Sequence[Sample]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=(samples[0].group_index or 0) >= 8)

    assert indices(run(Desk(), make_source(), keep=late, max_batches=3).groups) == [8, 9, 10, 11]


def test_a_filter_may_lend_what_it_dropped_to_a_short_batch() -> None:
    def lend_all_but_two(samples: Sequence[Sample]) -> DynamicFilterOutput:
        keep = (samples[0].group_index or 0) < 2
        return DynamicFilterOutput(keep=keep, reason="dull", keep_when_insufficient=True)

    source = make_source()
    collected = run(Desk(), source, keep=lend_all_but_two)
    assert indices(collected.groups) == [0, 1, 2, 3]
    assert indices(source.take(1)) == [4]


def test_what_is_unfinished_when_enough_is_there_starts_again_next_time() -> None:
    source = make_source()
    desk = Desk(lambda sample: 10_000 if sample.group_index in (1, 5) else 0)
    collected = run(desk, source, num_groups_at_once=6)
    assert indices(collected.groups) == [0, 2, 3, 4]
    assert collected.metrics["rollout/num_unfinished_groups"] == 2
    again = source.take(3)
    assert indices(again) == [1, 5, 6]
    assert all(s.status is Status.PENDING and s.tokens == [1, 2] for s in again[0].samples)


def test_partial_rollout_gives_back_what_was_written_and_when_it_began() -> None:
    source = make_source()
    desk = Desk(lambda sample: 10_000 if sample.group_index == 1 else 0)
    run(desk, source, num_groups_at_once=6, partial_rollout=True)
    (again,) = source.take(1)
    source.give_back([again])
    assert again.group_index == 1
    assert all(s.status is Status.ABORTED and s.tokens == [1, 2, 5] for s in again.samples)
    assert all(s.metadata["start_rollout_id"] == 3 for s in again.samples)
    resumed = run(Desk(), source)
    assert [s.tokens for s in resumed.groups[0].samples] == [[1, 2, 5, 9]] * 2


def test_a_dead_engine_ends_the_collection_and_everything_under_way() -> None:
    desk = Desk(lambda sample: 10**9)

    async def scenario() -> None:
        worker = GroupWorker(desk, index_reward)
        spec = CollectSpec(iteration=0, num_groups=2, num_groups_at_once=2)
        task = asyncio.create_task(collect(make_source(), worker, desk, spec))
        await asyncio.sleep(0.01)
        desk.dead = True
        with pytest.raises(EngineError, match="exit code 9"):
            await asyncio.wait_for(task, 10)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_user_code_that_an_abort_does_not_end_is_waited_for_and_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has deadlines of its own, and what it makes of other groups is no reason to end a run."""

    class Deaf(Desk):
        async def __call__(self, sample: Sample) -> Sample:
            while sample.group_index in (1, 5) and "waits for user code" not in caplog.text:
                await asyncio.sleep(0.01)
            return await super().__call__(sample)

        async def abort(self) -> None:
            pass

    monkeypatch.setattr(collecting, "_TELL_S", 0.1)
    monkeypatch.setattr(collecting, "_CHECK_S", 0.05)
    collected = run(Deaf(), make_source(), num_groups_at_once=6)
    assert indices(collected.groups) == [0, 2, 3, 4]
    assert collected.metrics["rollout/num_surplus_groups"] == 2
    assert "waits for user code that has begun others (1, 5): a custom generate" in caplog.text


def test_an_error_of_one_group_is_raised_and_the_others_are_cancelled() -> None:
    async def fail(samples: Sequence[Sample]) -> None:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        desk = Desk()
        spec = CollectSpec(iteration=0, num_groups=2, num_groups_at_once=2)
        with pytest.raises(RuntimeError, match="a bug"):
            await collect(make_source(), GroupWorker(desk, fail), desk, spec)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_another_group_takes_the_place_of_one_that_could_not_be_graded() -> None:
    async def refuse_first(samples: Sequence[Sample]) -> None:
        await index_reward(samples)
        for sample in samples:
            if sample.group_index == 0:
                sample.status, sample.reward = Status.FAILED, None
                sample.metadata["reward_outcome"] = "error"

    async def scenario() -> None:
        desk = Desk()
        spec = CollectSpec(iteration=0, num_groups=2, num_groups_at_once=2)
        found = await collect(make_source(), GroupWorker(desk, refuse_first), desk, spec)
        assert [group.group_index for group in found.groups] == [1, 2]
        assert found.metrics["rollout/dynamic_filter/drop_ungraded"] == 1.0

    asyncio.run(scenario())


def test_progress_counts_accepted_groups_and_shows_running_means() -> None:
    readings: list[tuple[int, int, Mapping[str, float]]] = []
    run(Desk(slow_first), make_source(), show=lambda *reading: readings.append(reading))
    done = [reading[0] for reading in readings]
    assert done == sorted(done)
    assert done[-1] == 4
    assert {reading[1] for reading in readings} == {4}
    assert readings[-1][2]["reward"] == 3.5
    assert readings[-1][2]["response_len"] == 2.0


def test_progress_looks_at_every_sample_as_often_however_many_there_are() -> None:
    reads: list[str] = []

    class Watched(Sample):
        def __getattribute__(self, name: str) -> Any:
            if name == "response_length":
                reads.append(name)
            return super().__getattribute__(name)

    async def generate(sample: Sample) -> Sample:
        for _ in range(5 * (sample.group_index or 0)):
            await asyncio.sleep(0)
        fields = {"tokens": [1, 2, 9], "response_length": 1, "status": Status.COMPLETED}
        return Watched(index=sample.index, group_index=sample.group_index, **fields)

    def reads_per_group(num_groups: int) -> float:
        reads.clear()
        spec = CollectSpec(
            iteration=0,
            num_groups=num_groups,
            num_groups_at_once=num_groups,
            show=lambda *_: None,
        )
        worker = GroupWorker(generate, index_reward)
        asyncio.run(collect(make_source(num_groups), worker, Desk(), spec))
        return len(reads) / num_groups

    assert reads_per_group(100) < 1.5 * reads_per_group(20)


def test_segments_of_one_sample_keep_its_group_and_rollout() -> None:
    async def split(sample: Sample) -> list[Sample]:
        return [Sample(tokens=[1, i], response_length=1, status=Status.COMPLETED) for i in range(3)]

    group = make_source().take(1)[0]
    finished = asyncio.run(GroupWorker(split, index_reward).finish(group, iteration=0))
    assert [s.rollout_id for s in finished.samples] == [0, 0, 0, 1, 1, 1]
    assert {s.group_index for s in finished.samples} == {0}
    assert all(s.reward is not None for s in finished.samples)


def test_a_hook_may_replace_a_sample_before_its_reward() -> None:
    async def shout(sample: Sample, *, rollout_id: int | None, evaluation: bool) -> Sample | None:
        assert (rollout_id, evaluation) == (7, True)
        if sample.index == 0:
            return None
        sample.index = 100
        return sample

    group = make_source().take(1)[0]
    worker = GroupWorker(Desk(), index_reward, hooks=[shout])
    finished = asyncio.run(worker.finish(group, iteration=7, evaluation=True))
    assert [s.reward for s in finished.samples] == [0.0, 100.0]


def test_a_hook_sees_a_sample_that_is_continued_once_when_it_is_whole() -> None:
    seen: list[tuple[int | None, Status]] = []

    async def note(sample: Sample, *, rollout_id: int | None, evaluation: bool) -> None:
        seen.append((sample.index, sample.status))

    async def scenario() -> None:
        source, aborted = make_source(), Desk(lambda sample: 10_000)
        group = source.take(1)[0]
        await aborted.abort()
        partly = await GroupWorker(aborted, index_reward, hooks=[note]).finish(group, iteration=0)
        assert [sample.status for sample in partly.samples] == [Status.ABORTED] * 2
        await GroupWorker(Desk(), index_reward, hooks=[note]).finish(partly, iteration=1)

    asyncio.run(scenario())
    assert seen == [(0, Status.COMPLETED), (1, Status.COMPLETED)]


def test_a_sample_that_breaks_a_length_invariant_is_named() -> None:
    async def broken(sample: Sample) -> Sample:
        sample.status = Status.COMPLETED
        sample.response_length = 99
        return sample

    group = make_source().take(1)[0]
    with pytest.raises(ValueError, match="sample 0: `response_length` is 99"):
        asyncio.run(GroupWorker(broken, index_reward).finish(group, iteration=0))


def test_every_prompt_given_out_is_accounted_for_over_iterations() -> None:
    def judge(samples: Sequence[Sample]) -> DynamicFilterOutput:
        keep = (samples[0].group_index or 0) % 3 != 0
        return DynamicFilterOutput(keep=keep, reason=None if keep else "third")

    def delay(sample: Sample) -> int:
        return 10_000 if (sample.group_index or 0) % 7 == 6 else (sample.group_index or 0) % 5

    source = make_source()
    for iteration in range(6):
        desk = Desk(delay)
        partial = iteration % 2 == 0
        metrics = run(
            desk,
            source,
            keep=judge,
            num_groups_at_once=5,
            iteration=iteration,
            partial_rollout=partial,
        ).metrics
        parts = ("trained", "filtered", "stale", "aborted", "failed", "buffered")
        given_out = metrics["rollout/prompts_given_out"]
        assert given_out == sum(metrics[f"rollout/prompts_{part}"] for part in parts)
        assert metrics["rollout/prompts_trained"] == 4 * (iteration + 1)
        assert metrics["rollout/prompts_buffered"] == source.num_waiting
    assert given_out == source.take(source.num_waiting + 1)[-1].group_index
    assert metrics["rollout/prompts_filtered/third"] > 0


def test_a_filter_that_calls_its_reason_surplus_keeps_the_books_balanced() -> None:
    def drop_first(samples: Sequence[Sample]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=samples[0].group_index != 0, reason="surplus")

    source = make_source()
    metrics = run(Desk(), source, keep=drop_first, num_groups_at_once=6).metrics
    assert source.ledger.filtered == {"surplus": 2}  # group 0, and group 5 that came too late
    assert metrics["rollout/num_surplus_groups"] == 1


def test_groups_of_failures_are_failed_not_trained() -> None:
    class Failing(Desk):
        async def __call__(self, sample: Sample) -> Sample:
            sample = await super().__call__(sample)
            if sample.group_index == 1:
                sample.status = Status.FAILED
            return sample

    metrics = run(Failing(), make_source()).metrics
    assert (metrics["rollout/prompts_trained"], metrics["rollout/prompts_failed"]) == (3, 1)


class AllFailing(Desk):
    async def __call__(self, sample: Sample) -> Sample:
        sample = await super().__call__(sample)
        sample.status = Status.FAILED
        sample.metadata["error"] = "mine.py:answer: KeyError: 'lable'"
        sample.metadata["traceback"] = '  File "mine.py", line 7, in answer'
        return sample


def test_a_rollout_of_failures_ends_the_run_with_the_first_one() -> None:
    with pytest.raises(GenerationError) as raised:
        run(AllFailing(), make_source())
    assert str(raised.value).splitlines() == [
        "all 8 samples of rollout 3 failed while they were generated: there is nothing to train "
        "on. The first one:",
        "mine.py:answer: KeyError: 'lable'",
        '  File "mine.py", line 7, in answer',
    ]


def test_failures_that_a_filter_drops_are_not_replaced_forever() -> None:
    def drop(samples: Sequence[Sample]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=False, reason="failed")

    with pytest.raises(GenerationError, match=r"mine\.py:answer"):
        run(AllFailing(), make_source(), keep=drop)


def test_tokens_of_groups_that_are_dropped_or_begun_again_are_wasted() -> None:
    def first_is_dull(samples: Sequence[Sample]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=samples[0].group_index != 0, reason="dull")

    def delay(sample: Sample) -> int:
        return 10_000 if sample.group_index == 5 else 1

    for partial, wasted in ((False, 2 * 2 + 2), (True, 2 * 2)):
        collected = run(
            Desk(delay),
            make_source(),
            keep=first_is_dull,
            num_groups_at_once=6,
            partial_rollout=partial,
        )
        assert indices(collected.groups) == [1, 2, 3, 4]
        assert collected.metrics["rollout/num_wasted_tokens"] == wasted


def test_samples_beside_one_that_fails_are_not_left_running() -> None:
    async def first_fails(sample: Sample) -> Sample:
        if sample.index == 0:
            raise EngineError("engine_0 ended with exit code 9")
        await asyncio.sleep(60)
        return sample

    async def scenario() -> None:
        worker, spec = (
            GroupWorker(first_fails, index_reward),
            CollectSpec(iteration=0, num_groups=2, num_groups_at_once=2),
        )
        with pytest.raises(EngineError, match="exit code 9"):
            await collect(make_source(), worker, Desk(), spec)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
