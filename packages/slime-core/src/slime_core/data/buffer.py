"""Groups that were started and not finished."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slime_core.data.plain_samples import group_from_plain, plain_group
from slime_core.types import Sample, SampleGroup

Selection = Callable[[list[SampleGroup], int], list[SampleGroup]]
"""(waiting groups, how many at most) -> groups to continue; removes what it returns."""


def oldest_first(waiting: list[SampleGroup], num_groups: int) -> list[SampleGroup]:
    """The groups that have waited longest."""
    taken = waiting[:num_groups]
    del waiting[:num_groups]
    return taken


class GroupBuffer:
    """Unfinished groups, waiting to be taken before new prompts are; survives a checkpoint."""

    def __init__(self, select: Selection = oldest_first) -> None:
        self._waiting: list[SampleGroup] = []
        self._select = select

    def __len__(self) -> int:
        return len(self._waiting)

    def indices(self) -> list[int]:
        """Which groups wait."""
        return [group.group_index for group in self._waiting]

    def sizes(self) -> Counter[int]:
        """How many groups wait by the number of their samples."""
        return Counter(len(group.samples) for group in self._waiting)

    def add(self, groups: Sequence[SampleGroup]) -> None:
        """Append ``groups``."""
        self._waiting.extend(groups)

    def take(self, num_groups: int) -> list[SampleGroup]:
        """Remove and return at most ``num_groups``."""
        return self._select(self._waiting, num_groups) if self._waiting else []

    def state_dict(self) -> list[dict[str, Any]]:
        """The waiting groups as plain data."""
        return [plain_group(group) for group in self._waiting]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Wait with the groups of ``state_dict`` instead of the present ones."""
        self._waiting = [group_from_plain(group) for group in state]


def restarted(group: SampleGroup) -> SampleGroup:
    """The same prompts, with nothing generated and nothing to compare with."""
    return SampleGroup(group.group_index, tuple(_pending(sample) for sample in group.samples))


def _pending(sample: Sample) -> Sample:
    return Sample(
        group_index=sample.group_index,
        index=sample.index,
        rollout_id=sample.rollout_id,
        prompt=sample.prompt,
        tokens=sample.tokens[: sample.prompt_length],
        label=sample.label,
        metadata={k: v for k, v in sample.metadata.items() if k != "error"},
        generate_function_path=sample.generate_function_path,
        custom_rm_path=sample.custom_rm_path,
        multimodal_inputs=sample.multimodal_inputs,
        apply_chat_template_kwargs=sample.apply_chat_template_kwargs,
    )
