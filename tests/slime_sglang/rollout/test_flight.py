"""Groups that go on from one rollout to the next."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from slime_core.data.filters import DynamicFilterOutput
from slime_core.data.stream import PromptStream
from slime_core.types import Sample, SampleGroup, Status
from slime_sglang.rollout.collecting import Collected, CollectSpec, collect
from slime_sglang.rollout.flight import Flight, InTime, begin_again
from slime_sglang.rollout.groups import GroupWorker
from slime_testing.desk import Desk, index_reward, make_source

SIZE = 4


class Rollouts:
    """One rollout after the other, in one event loop."""

    def __init__(self, desk: Desk, source: PromptStream | None = None, **changes: Any) -> None:
        self.desk, self.source, self.flight = desk, source or make_source(), Flight()
        self._changes = {"in_time": lambda iteration: True, **changes}
        self._reward = self._changes.pop("reward", index_reward)
        self._iteration = -1

    async def next(self, **changes: Any) -> Collected:
        self._iteration += 1
        fields = {"num_groups": SIZE, "num_groups_at_once": SIZE, **self._changes, **changes}
        spec = CollectSpec(iteration=self._iteration, **fields)
        worker = GroupWorker(self.desk, self._reward)
        return await collect(self.source, worker, self.desk, spec, self.flight)

    def position(self) -> dict[str, Any]:
        return {**self.source.state_dict(), **self.flight.state_dict()}


def indices(groups: Sequence[SampleGroup]) -> list[int]:
    return [group.group_index for group in groups]


def delayed(**ticks: int) -> Callable[[Sample], int]:
    """``g0=50``: group 0 takes 50 ticks; the others one to three."""
    return lambda sample: ticks.get(f"g{sample.group_index}", 1 + (sample.group_index or 0) % 3)


def balance(metrics: dict[str, float]) -> None:
    parts = ("trained", "filtered", "stale", "aborted", "failed", "buffered", "in_flight")
    given_out = metrics["rollout/prompts_given_out"]
    assert given_out == sum(metrics[f"rollout/prompts_{part}"] for part in parts)


def test_a_straggler_is_neither_waited_for_nor_aborted_and_counts_when_it_is_done() -> None:
    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g1=60)))
        made = [await rollouts.next() for _ in range(12)]
        groups = [indices(collected.groups) for collected in made]
        where = next(i for i, each in enumerate(groups) if 1 in each)
        assert where > 1
        assert max(max(each) for each in groups[:where]) > SIZE  # later prompts overtook it
        seen = [index for each in groups for index in each]
        assert len(set(seen)) == len(seen) == 12 * SIZE
        straggler = next(g for g in made[where].groups if g.group_index == 1)
        assert all(s.status is Status.COMPLETED for s in straggler.samples)  # written in one go
        for collected in made:
            balance(collected.metrics)
        assert made[-1].metrics["rollout/prompts_in_flight"] == len(rollouts.flight)
        await rollouts.flight.cancel()

    asyncio.run(scenario())


def test_as_many_groups_are_in_flight_while_a_rollout_fills_up_as_it_has() -> None:
    async def scenario() -> None:
        busy: list[int] = []
        rollouts = Rollouts(Desk(lambda sample: 5 + 7 * ((sample.index or 0) % 5)))

        def show(*reading: Any) -> None:
            busy.append(len(rollouts.flight))

        for _ in range(6):
            await rollouts.next(show=show)
        assert max(busy) <= SIZE
        assert rollouts.desk.most_at_once == 2 * SIZE
        assert sum(busy) / len(busy) > SIZE / 2  # not all wait for the last one
        more = Rollouts(Desk(delayed()), num_groups_at_once=7)
        await more.next()
        assert more.desk.most_at_once == 2 * 7
        await rollouts.flight.cancel()
        await more.flight.cancel()

    asyncio.run(scenario())


def test_nothing_begins_between_rollouts_but_what_was_begun_is_finished() -> None:
    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g0=40, g1=50)))
        await rollouts.next()
        taken = rollouts.source.ledger.given_out
        for _ in range(200):
            await asyncio.sleep(0)
        assert rollouts.source.ledger.given_out == taken
        assert rollouts.flight.num_running == 0
        assert len(rollouts.flight) >= 2
        assert {0, 1} <= set(indices((await rollouts.next()).groups))
        await rollouts.flight.cancel()

    asyncio.run(scenario())


def test_finished_groups_beyond_a_rollout_wait_for_the_next_one() -> None:
    async def scenario() -> None:
        rollouts = Rollouts(Desk(lambda sample: 1), num_groups_at_once=7)
        first, second = await rollouts.next(), await rollouts.next()
        assert indices(first.groups) == [0, 1, 2, 3]
        assert indices(second.groups)[:3] == [4, 5, 6]
        assert first.metrics["rollout/num_surplus_groups"] == 0
        await rollouts.flight.cancel()

    asyncio.run(scenario())


def test_a_group_that_would_be_too_old_waits_for_newer_weights() -> None:
    async def scenario() -> None:
        version = [0]
        in_time = InTime(publish_every=1, oldest=1, version=lambda: version[0])
        rollouts = Rollouts(Desk(delayed(g4=10**9)), in_time=in_time)
        await rollouts.next()
        assert rollouts.source.ledger.given_out <= 2 * SIZE
        # Rollout 1 has its groups; those of rollout 2 would be two versions behind.
        second = asyncio.create_task(rollouts.next())
        for _ in range(300):
            await asyncio.sleep(0)
        assert not second.done()
        assert rollouts.source.ledger.given_out == 2 * SIZE
        version[0] = 1
        assert 4 not in indices((await second).groups)
        assert rollouts.source.ledger.given_out > 2 * SIZE
        await rollouts.flight.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("iteration", "every", "oldest", "version", "expected"),
    [
        (5, 1, 1, 4, True),
        (5, 1, 1, 3, False),
        (5, 2, 2, 2, True),  # trained with the weights published as 4
        (6, 2, 2, 2, False),
        (9, 1, None, 0, True),
        (9, 1, 1, None, True),
    ],
)
def test_age_is_that_at_the_iteration_that_trains(
    iteration: int, every: int, oldest: int | None, version: int | None, expected: bool
) -> None:
    in_time = InTime(publish_every=every, oldest=oldest, version=lambda: version)
    assert in_time(iteration) is expected


def test_what_is_dropped_is_replaced_though_nothing_later_may_begin() -> None:
    def odd_only(samples: Sequence[Sample]) -> DynamicFilterOutput:
        odd = (samples[0].group_index or 0) % 2 == 1
        return DynamicFilterOutput(keep=odd, reason="even", keep_when_insufficient=True)

    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed()), keep=odd_only, in_time=lambda iteration: False)
        for number in range(3):
            collected = await rollouts.next()
            assert len(collected.groups) == SIZE
            assert all(index % 2 for index in indices(collected.groups))
            assert collected.metrics["rollout/prompts_trained"] == SIZE * (number + 1)
            balance(collected.metrics)
        await rollouts.flight.cancel()

    asyncio.run(scenario())


def test_a_failure_between_two_rollouts_is_raised_by_the_second_and_ends_the_others() -> None:
    async def fail_late(samples: Sequence[Sample]) -> None:
        if samples[0].group_index == 2:
            raise RuntimeError("a bug")
        await index_reward(samples)

    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g2=30, g3=10**9)), reward=fail_late)
        await rollouts.next()
        for _ in range(100):
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="a bug"):
            await rollouts.next()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("goes_on_so", [True, False], ids=["fully asynchronous", "in turns"])
def test_what_was_in_flight_at_a_checkpoint_begins_again_and_each_prompt_is_used_once(
    goes_on_so: bool,
) -> None:
    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g0=10**9, g5=10**9)))
        trained = [i for _ in range(3) for i in indices((await rollouts.next()).groups)]
        position = rollouts.position()
        in_flight = indices(list(rollouts.flight.tasks.values()))
        assert {0, 5} <= set(in_flight)
        await rollouts.flight.cancel()

        source = make_source()
        source.load_state_dict(position)
        begin_again(source, position)
        changes = {} if goes_on_so else {"in_time": None}
        resumed = Rollouts(Desk(delayed()), source, **changes)
        for _ in range(5):
            collected = await resumed.next()
            balance(collected.metrics)
            assert all(s.tokens[:2] == [1, 2] for g in collected.groups for s in g.samples)
            assert all(s.tokens.count(9) == 1 for g in collected.groups for s in g.samples)
            trained += indices(collected.groups)
        left = list(resumed.flight.tasks.values())
        assert len(set(trained)) == len(trained)
        assert sorted(trained + indices(left)) == list(range(len(trained) + len(left)))
        assert source.ledger.trained == len(trained)
        await resumed.flight.cancel()

    asyncio.run(scenario())


def test_the_position_of_a_group_in_flight_is_the_prompt_alone() -> None:
    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g0=10**9)))
        await rollouts.next()
        for _ in range(50):
            await asyncio.sleep(0)
        kept = rollouts.position()["in_flight"]
        assert kept[0]["group_index"] == 0
        for sample in kept[0]["samples"]:
            assert (sample["tokens"], sample["status"]) == ([1, 2], Status.PENDING.value)
        await rollouts.flight.cancel()
        assert Flight().state_dict() == {}

    asyncio.run(scenario())


def test_groups_that_were_finished_and_not_looked_at_are_not_generated_again() -> None:
    """Of 4 + 7 groups that were begun, a rollout took 4: the others wait, whole, or are written."""

    async def scenario() -> None:
        rollouts = Rollouts(Desk(delayed(g5=10**9)), num_groups_at_once=7)
        await rollouts.next()
        for _ in range(50):
            await asyncio.sleep(0)
        position = rollouts.position()
        rewards = {
            group["group_index"]: [sample["reward"] for sample in group["samples"]]
            for group in position["in_flight"]
        }
        assert rewards == {
            index: [None, None] if index == 5 else [2.0 * index, 2.0 * index + 1]
            for index in indices(list(rollouts.flight.tasks.values()))
        }
        assert len(rewards) > 2
        await rollouts.flight.cancel()

        source, asked = make_source(), list[int]()
        source.load_state_dict(position)
        begin_again(source, position)

        def note(sample: Sample) -> int:
            asked.append(sample.group_index or 0)
            return 1

        resumed = Rollouts(Desk(note), source)
        trained = [i for _ in range(3) for i in indices((await resumed.next()).groups)]
        assert set(asked) & set(rewards) == {5}
        assert set(rewards) <= set(trained)
        assert len(set(trained)) == len(trained)
        await resumed.flight.cancel()

    asyncio.run(scenario())
