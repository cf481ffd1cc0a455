import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from slime_core.errors import EngineError, SampleError
from slime_core.types import Sample, SampleGroup, Status
from slime_sglang.rollout.collecting import CollectSpec, collect
from slime_sglang.rollout.groups import Greedy, GroupWorker
from slime_testing.desk import Desk, index_reward, make_source
from slime_testing.engine_stub import Server, answered, run


async def best(sample: Sample) -> Sample:
    """The greedy answer: token 4."""
    sample.tokens = [*sample.tokens, 4]
    sample.response_length = 1
    sample.response = "greedy"
    sample.status = Status.COMPLETED
    return sample


async def reward(samples: Sequence[Sample]) -> None:
    for sample in samples:
        sample.reward = 0.75 if sample.response == "greedy" else float(sample.index or 0)


def finish(group: SampleGroup, greedy: Greedy | None, **changes: Any) -> SampleGroup:
    worker = GroupWorker(Desk(), changes.pop("reward", reward), greedy=greedy, **changes)
    return asyncio.run(worker.finish(group, iteration=0))


def take() -> SampleGroup:
    return make_source().take(1)[0]


def test_the_greedy_answer_is_scored_and_is_no_sample() -> None:
    group = finish(take(), Greedy(best))
    assert group.baseline == 0.75
    assert [s.reward for s in group.samples] == [0.0, 1.0]
    assert [s.tokens for s in group.samples] == [[1, 2, 9]] * 2


def test_without_an_estimator_that_wants_it_there_is_no_greedy_answer() -> None:
    assert finish(take(), None).baseline is None


def test_a_baseline_that_is_known_is_not_asked_for_again() -> None:
    async def never(sample: Sample) -> Sample:
        raise AssertionError

    group = take()
    assert finish(SampleGroup(0, group.samples, 0.5), Greedy(never)).baseline == 0.5


def test_a_dictionary_reward_is_compared_by_its_key() -> None:
    async def scored(samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.reward = {"right": 0.25, "short": 1.0}

    assert finish(take(), Greedy(best, "right"), reward=scored).baseline == 0.25
    with pytest.raises(SampleError, match="--reward-key"):
        finish(take(), Greedy(best), reward=scored)


def test_a_greedy_answer_in_segments_counts_by_their_mean() -> None:
    async def split(sample: Sample) -> list[Sample]:
        return [
            Sample(index=i, tokens=[1, i], response_length=1, status=Status.COMPLETED)
            for i in (1, 2)
        ]

    assert finish(take(), Greedy(split)).baseline == 1.5


def test_where_the_greedy_answer_fails_nothing_is_learnt() -> None:
    async def broken(sample: Sample) -> Sample:
        sample.status = Status.FAILED
        sample.metadata["error"] = "no tool"
        return sample

    group = finish(take(), Greedy(broken))
    assert group.baseline is None
    assert {s.status for s in group.samples} == {Status.FAILED}
    assert group.samples[0].metadata["error"].endswith("failed: no tool")


def test_a_group_whose_greedy_answer_was_aborted_is_unfinished_and_tried_again() -> None:
    async def aborted(sample: Sample) -> Sample:
        if sample.group_index == 1:
            await asyncio.sleep(0.05)
            sample.status = Status.ABORTED
            return sample
        return await best(sample)

    source = make_source()
    worker = GroupWorker(Desk(), index_reward, greedy=Greedy(aborted))
    spec = CollectSpec(iteration=3, num_groups=2, num_groups_at_once=3, partial_rollout=True)
    collected = asyncio.run(collect(source, worker, Desk(), spec))
    assert [group.group_index for group in collected.groups] == [0, 2]
    assert collected.metrics["rollout/num_unfinished_groups"] == 1
    assert collected.metrics["rollout/greedy_reward"] == 2.0  # of the samples 0 and 4
    (again,) = source.take(1)
    assert again.baseline is None
    assert [s.status for s in again.samples] == [Status.COMPLETED] * 2
    assert finish(again, Greedy(best)).baseline == 0.75


def test_greedy_requests_ask_for_temperature_0_and_evaluation_keeps_its_own() -> None:
    server = Server(answered)

    async def scenario(generation: Any, sample: Sample) -> Any:
        return await generation.greedy(sample)

    (sample,) = run(server, [Sample(index=0, tokens=[1, 2])], call=scenario)
    assert server.bodies[0]["sampling_params"]["temperature"] == 0
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == 8
    assert sample.status is Status.COMPLETED


def test_custom_functions_answer_greedily_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from slime_sglang import generate_single\n\n"
        "async def custom_generate(args, sample, sampling_params):\n"
        "    sample.metadata['asked'] = sampling_params['temperature']\n"
        "    return await generate_single(args, sample)\n"
    )
    server = Server(answered)

    async def scenario(generation: Any, sample: Sample) -> Any:
        return await generation.greedy(sample)

    samples = [Sample(index=0, tokens=[1, 2])]
    (sample,) = run(server, samples, call=scenario, custom_generate=str(path))
    assert sample.metadata["asked"] == 0
    assert server.bodies[0]["sampling_params"]["temperature"] == 0


def test_a_teacher_sees_the_samples_of_a_finished_group_and_may_end_the_run() -> None:
    seen: list[int | None] = []

    async def teach(samples: Sequence[Sample]) -> None:
        seen.extend(sample.index for sample in samples)

    finish(take(), None, teach=teach)
    assert seen == [0, 1]

    async def gone(samples: Sequence[Sample]) -> None:
        raise EngineError("--rm-url")

    with pytest.raises(EngineError, match="--rm-url"):
        finish(take(), None, teach=gone)
