"""Score the policy on prompts of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from slime_core.config.data import DataConfig
from slime_core.config.eval_sets import EvalDataset
from slime_core.data.chat import Tokenizer
from slime_core.data.prompt_room import PromptRoom
from slime_core.data.prompts import Prompt, load_prompts
from slime_core.data.stream import make_group
from slime_core.reports.metrics import merge, pass_rates, sample_metrics
from slime_core.types import Sample, SampleGroup, Status

from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.rollout.collecting import Abortable
from slime_sglang.rollout.groups import GroupWorker
from slime_sglang.rollout.running_statistics import RunningStatistics, ShowProgress
from slime_sglang.together import end

_CHECK_S = 1.0
_COLUMNS = (
    "input_key",
    "label_key",
    "compared_by",
    "tool_key",
    "metadata_key",
    "apply_chat_template",
    "apply_chat_template_kwargs",
)
"""What a set says of its rows in place of --input-key and so on."""


@dataclass(frozen=True, slots=True)
class EvalSet:
    """A set and its prompts."""

    dataset: EvalDataset
    prompts: Sequence[Prompt]

    @classmethod
    def read(
        cls,
        dataset: EvalDataset,
        data: DataConfig,
        tokenizer: Tokenizer,
        room: PromptRoom | None = None,
    ) -> "EvalSet":
        """The prompts of its file, by its own columns."""
        columns = replace(data, **{name: getattr(dataset, name) for name in _COLUMNS})
        prompts = load_prompts(
            columns,
            tokenizer,
            sources=[dataset.path],
            max_prompt_len=dataset.max_prompt_len,
            room=room,
        )
        return cls(dataset, prompts)

    @property
    def name(self) -> str:
        """What its metrics are called."""
        return self.dataset.name

    def groups(self) -> list[SampleGroup]:
        """Every prompt's samples, with what the set says of them."""
        count = self.dataset.n_samples_per_eval_prompt
        groups = [make_group(prompt, index, count) for index, prompt in enumerate(self.prompts)]
        for sample in (sample for group in groups for sample in group.samples):
            sample.generate_function_path = self.dataset.custom_generate_function_path
            sample.custom_rm_path = self.dataset.custom_rm_path
            sample.metadata |= self.dataset.metadata_overrides
            if self.dataset.rm_type is not None:
                sample.metadata["rm_type"] = self.dataset.rm_type
        return groups


class EvalGeneration(Abortable, Protocol):
    """What an evaluation needs of ``Generation``."""

    def begin_evaluation(self, label: str, sampling: Sampling) -> None:
        """Generate for an evaluation from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Samples by set, and metrics of all sets."""

    samples: dict[str, list[Sample]]
    metrics: dict[str, float]

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """Rewards, which answers were cut off, and samples of every set."""
        return {
            name: {
                "rewards": [sample.reward for sample in samples],
                "truncated": [sample.status is Status.TRUNCATED for sample in samples],
                "samples": samples,
            }
            for name, samples in self.samples.items()
        }


async def evaluate(
    sets: Sequence[EvalSet],
    worker: GroupWorker,
    generation: EvalGeneration,
    *,
    iteration: int,
    show: ShowProgress | None = None,
) -> Evaluated:
    """Answer and score every set, one after the other.

    eval/{name}                  mean reward
    eval/{name}/{sample metric}  what a rollout reports about samples
    eval/{name}-truncated_ratio, eval/{name}-pass@{k}
    """
    samples: dict[str, list[Sample]] = {}
    metrics: dict[str, float] = {}
    for each in sets:
        samples[each.name] = await _answer(each, worker, generation, iteration, show)
        metrics |= set_metrics(each, samples[each.name])
    return Evaluated(samples, metrics)


async def _answer(
    each: EvalSet,
    worker: GroupWorker,
    generation: EvalGeneration,
    iteration: int,
    show: ShowProgress | None,
) -> list[Sample]:
    generation.begin_evaluation(each.name, Sampling.of_evaluation(each.dataset))
    statistics = RunningStatistics()
    groups = each.groups()
    tasks = [
        asyncio.create_task(worker.finish(group, iteration=iteration, evaluation=True))
        for group in groups
    ]
    try:
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED
            )
            generation.check_alive()
            for task in done:
                statistics.add(task.result().samples)  # waits: is done
            if show is not None:
                show(len(tasks) - len(waiting), len(groups), statistics.values())
    except BaseException:
        await end(tasks)
        raise
    # waits: all are done
    return [sample for task in tasks for sample in task.result().samples]


def set_metrics(each: EvalSet, samples: Sequence[Sample]) -> dict[str, float]:
    """The numbers of one set under its name."""
    found = sample_metrics(samples, reward_key=each.dataset.reward_key)
    rates = pass_rates(samples, reward_key=each.dataset.reward_key)
    metrics = merge([(f"eval/{each.name}/", found), (f"eval/{each.name}-", rates)])
    metrics[f"eval/{each.name}"] = found.get("raw_reward", 0.0)
    metrics[f"eval/{each.name}-truncated_ratio"] = found.get("truncated_ratio", 0.0)
    return metrics
