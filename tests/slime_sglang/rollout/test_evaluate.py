import asyncio
from collections.abc import Sequence

from slime_core.data.prompts import Prompt
from slime_core.types import Sample, Status
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.rollout.evaluate import EvalSet, evaluate
from slime_sglang.rollout.groups import GroupWorker
from slime_testing.eval_sets import dataset


class Desk:
    """Every second sample of a prompt is right; the last one is cut off."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []

    def begin_evaluation(self, label: str, sampling: Sampling) -> None:
        self.begun.append((label, sampling.temperature))

    async def __call__(self, sample: Sample) -> Sample:
        assert sample.index is not None
        sample.tokens = [*sample.tokens, 1]
        sample.response_length = 1
        sample.status = Status.TRUNCATED if sample.index % 4 == 3 else Status.COMPLETED
        return sample

    def check_alive(self) -> None:
        pass

    async def abort(self) -> None:
        raise AssertionError("an evaluation aborts nothing")


async def every_second(samples: Sequence[Sample]) -> None:
    for sample in samples:
        sample.reward = float((sample.index or 0) % 2 == 0)


def test_a_set_says_how_its_samples_are_generated_and_scored() -> None:
    prompt = Prompt(prompt="p", tokens=(1,), metadata={"source": "book"})
    each = EvalSet(
        dataset(
            "hard",
            rm_type="gpqa",
            custom_generate_function_path="tools.py:answer",
            metadata_overrides={"level": 5},
        ),
        [prompt],
    )
    (group,) = each.groups()
    assert group.samples[0].metadata == {"source": "book", "level": 5, "rm_type": "gpqa"}
    assert group.samples[0].generate_function_path == "tools.py:answer"
    assert prompt.metadata == {"source": "book"}


def test_sets_are_scored_under_their_names_with_unbiased_pass_rates() -> None:
    prompts = [Prompt(prompt="p", tokens=(1,)) for _ in range(3)]
    sets = [
        EvalSet(dataset("sums", n_samples_per_eval_prompt=4, temperature=0.0), prompts),
        EvalSet(dataset("one"), prompts[:1]),
    ]
    desk = Desk()
    shown: list[tuple[int, int]] = []
    found = asyncio.run(
        evaluate(
            sets,
            GroupWorker(desk, every_second),
            desk,
            iteration=2,
            show=lambda done, total, _: shown.append((done, total)),
        )
    )
    metrics = found.metrics
    assert metrics["eval/sums"] == 0.5
    assert metrics["eval/sums-truncated_ratio"] == 0.25
    assert metrics["eval/sums-pass@1"] == 0.5
    # 1 - C(2, 2) / C(4, 2)
    assert abs(metrics["eval/sums-pass@2"] - 5 / 6) < 1e-12
    assert metrics["eval/sums-pass@4"] == 1.0
    assert metrics["eval/sums/response_len/mean"] == 1.0
    assert metrics["eval/one"] == 1.0
    assert len(found.samples["sums"]) == 12
    assert desk.begun == [("sums", 0.0), ("one", 1.0)]
    assert shown[-1] == (1, 1)
    assert (3, 3) in shown
