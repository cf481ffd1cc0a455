"""An endless, shuffled, resumable stream of groups."""

import copy
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.data.buffer import GroupBuffer, Selection, oldest_first
from slime_core.data.prompts import Prompt
from slime_core.errors import DataError
from slime_core.types import Sample, SampleGroup

logger = logging.getLogger(__name__)


class PromptStream:
    """Passes over ``prompts`` again and again; unfinished groups come first.

    Every epoch has an order of its own that depends only on the seed and the epoch's number.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        n_samples_per_prompt: int,
        *,
        shuffle: bool,
        seed: int,
        select: Selection = oldest_first,
    ) -> None:
        if not prompts:
            raise DataError("a prompt stream needs at least one prompt")
        self._prompts = prompts
        self._n_samples = n_samples_per_prompt
        self._shuffle = shuffle
        self._seed = seed
        self._buffer = GroupBuffer(select)
        self._epoch = 0
        self._offset = 0
        self._num_groups = 0
        self._order = self._permutation()

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def epoch(self) -> int:
        """How many passes are complete."""
        return self._epoch

    @property
    def num_waiting(self) -> int:
        """Unfinished groups."""
        return len(self._buffer)

    def take(self, num_groups: int) -> list[SampleGroup]:
        """The next groups, through as many epochs as that needs."""
        groups = self._buffer.take(num_groups)
        return groups + [self._next() for _ in range(num_groups - len(groups))]

    def give_back(self, groups: Sequence[SampleGroup]) -> None:
        """Return groups to be taken again first, as they are."""
        self._buffer.add(groups)

    def state_dict(self) -> dict[str, Any]:
        """The exact position and the unfinished groups, as plain data."""
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "num_groups": self._num_groups,
            "num_prompts": len(self._prompts),
            "buffer": self._buffer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s position."""
        if state["num_prompts"] != len(self._prompts):
            logger.warning(
                "the checkpoint's stream had %d prompts, this one has %d: "
                "the order of this epoch is not the one that was interrupted",
                state["num_prompts"],
                len(self._prompts),
            )
        self._epoch = state["epoch"]
        self._offset = min(state["offset"], len(self._prompts))
        self._num_groups = state["num_groups"]
        self._buffer.load_state_dict(state["buffer"])
        self._order = self._permutation()

    def _next(self) -> SampleGroup:
        if self._offset == len(self._prompts):
            self._epoch += 1
            self._offset = 0
            self._order = self._permutation()
        prompt = self._prompts[self._order[self._offset]]
        group = make_group(prompt, self._num_groups, self._n_samples)
        self._offset += 1
        self._num_groups += 1
        return group

    def _permutation(self) -> list[int]:
        order = list(range(len(self._prompts)))
        if self._shuffle:
            random.Random(self._seed + self._epoch).shuffle(order)
        return order


def make_group(prompt: Prompt, group_index: int, n_samples: int) -> SampleGroup:
    """``n_samples`` pending samples of one prompt, numbered through the run."""
    first = group_index * n_samples
    samples = tuple(
        Sample(
            group_index=group_index,
            index=index,
            rollout_id=index,
            prompt=copy.deepcopy(prompt.prompt),
            tokens=list(prompt.tokens or ()),
            label=prompt.label,
            metadata=copy.deepcopy(prompt.metadata),
        )
        for index in range(first, first + n_samples)
    )
    return SampleGroup(group_index, samples)
