"""An endless, shuffled, resumable stream of groups."""

import copy
import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from slime_core import prompt_ledger
from slime_core.data.buffer import GroupBuffer, Selection, oldest_first
from slime_core.data.file_slice import parse
from slime_core.data.reading import Prompt
from slime_core.errors import DataError
from slime_core.types import Sample, SampleGroup

logger = logging.getLogger(__name__)


@runtime_checkable
class Cursor(Protocol):
    """A place in prompts that are passed over again and again."""

    @property
    def epoch(self) -> int:
        """How many passes are complete."""
        ...

    def __len__(self) -> int:
        """Prompts of an epoch."""
        ...

    def next(self) -> Prompt:
        """The next prompt, in this epoch or the one after it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there."""
        ...

    def metrics(self) -> dict[str, float]:
        """What there is to say about the prompts so far."""
        ...

    def close(self) -> None:
        """End what ``next`` started."""
        ...


class LoadedPrompts:
    """A cursor over prompts in memory.

    Every epoch has an order of its own that depends only on the seed and the epoch's number.
    """

    def __init__(self, prompts: Sequence[Prompt], *, shuffle: bool, seed: int) -> None:
        if not prompts:
            raise DataError("a prompt stream needs at least one prompt")
        self._prompts = prompts
        self._shuffle = shuffle
        self._seed = seed
        self.epoch = 0
        self._offset = 0
        self._order = self._permutation()

    def __len__(self) -> int:
        return len(self._order)

    def next(self) -> Prompt:
        """The next prompt, in this epoch or the one after it."""
        while self._offset == len(self._order):
            self.epoch += 1
            self._offset = 0
            self._order = self._permutation()
        self._offset += 1
        return self._prompts[self._order[self._offset - 1]]

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain data."""
        return {"epoch": self.epoch, "offset": self._offset, "num_prompts": len(self._prompts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s position."""
        found = state.get("num_prompts", "streamed")
        if found != len(self._prompts):
            logger.warning(
                "the checkpoint's stream had %s prompts, this one has %d: "
                "the order of this epoch is not the one that was interrupted",
                found,
                len(self._prompts),
            )
        self.epoch = state["position"]["epoch"] if "position" in state else state["epoch"]
        self._order = self._permutation()
        self._offset = min(state.get("offset", 0), len(self._order))

    def metrics(self) -> dict[str, float]:
        """All was said when the prompts were loaded."""
        return {}

    def close(self) -> None:
        """Nothing was started."""

    def _permutation(self) -> list[int]:
        order = list(self._rows())
        if self._shuffle:
            random.Random(self._seed + self.epoch).shuffle(order)
        return order

    def _rows(self) -> Iterator[int]:
        """Rows of the epoch: each source as often as it weighs."""
        rows = range(len(self._prompts))
        for source, part in itertools.groupby(rows, key=lambda row: self._prompts[row].source):
            members = list(part)
            if "*" not in source:
                yield from members
                continue
            wanted = parse(source)
            for number in range(wanted.num_passes):
                for row, member in enumerate(members):
                    if wanted.sees(row, number=number, epoch=self.epoch):
                        yield member


class PromptStream:
    """Passes over ``prompts`` again and again; unfinished groups come first."""

    def __init__(
        self,
        prompts: Sequence[Prompt] | Cursor,
        n_samples_per_prompt: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        select: Selection = oldest_first,
    ) -> None:
        loaded = isinstance(prompts, Sequence)
        self._cursor: Cursor = (
            LoadedPrompts(prompts, shuffle=shuffle, seed=seed) if loaded else prompts
        )
        self._n_samples = n_samples_per_prompt
        self._buffer = GroupBuffer(select)
        self._num_groups = self._num_samples = 0
        self.ledger = prompt_ledger.PromptLedger()

    def __len__(self) -> int:
        return len(self._cursor)

    @property
    def epoch(self) -> int:
        """How many passes are complete."""
        return self._cursor.epoch

    @property
    def num_waiting(self) -> int:
        """Unfinished groups."""
        return len(self._buffer)

    def take(self, num_groups: int) -> list[SampleGroup]:
        """The next groups, through as many epochs as that needs."""
        groups = self._buffer.take(num_groups)
        groups += [self._next() for _ in range(num_groups - len(groups))]
        self.ledger.take(groups)
        return groups

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """The next groups as lists, for functions and data sources in upstream's style."""
        return [list(group.samples) for group in self.take(num_samples)]

    sample = get_samples

    def add_samples(self, samples: Sequence[list[Sample]]) -> None:
        """Put groups into the buffer that did not come from ``take``, or are done with."""
        self.add([SampleGroup(_index_of(group), tuple(group)) for group in samples])

    def add(self, groups: Sequence[SampleGroup]) -> None:
        """The same, as groups."""
        self.ledger.add(groups)
        self._buffer.add(groups)

    def begin(self, iteration: int) -> None:
        """Nothing depends on the iteration."""

    def give_back(self, groups: Sequence[SampleGroup]) -> None:
        """Return groups to be taken again first, as they are."""
        self._buffer.add(groups)
        self.ledger.give_back(groups)

    def settle(self) -> None:
        """Check that every prompt given out is accounted for; raises ``DataError``."""
        self.ledger.settle(self._buffer.indices(), num_made=self._num_groups)

    def metrics(self) -> dict[str, float]:
        """The books, and rows that were left out."""
        return self.ledger.metrics() | self._cursor.metrics()

    def close(self) -> None:
        """End the processes that read ahead."""
        self._cursor.close()

    def state_dict(self) -> dict[str, Any]:
        """The exact position and the unfinished groups, as plain data."""
        return {
            **self._cursor.state_dict(),
            "num_groups": self._num_groups,
            "num_samples": self._num_samples,
            "buffer": self._buffer.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s position."""
        if "num_groups" not in state:
            raise DataError(
                "the checkpoint's prompts are those of a class: give the same --data-source-path, "
                "or add --finetune to take the weights and start the data anew"
            )
        self._cursor.load_state_dict(state)
        self._num_groups = state["num_groups"]
        self._num_samples = state.get("num_samples", self._num_groups * self._n_samples)
        self._buffer.load_state_dict(state["buffer"])
        for size, number in self._buffer.sizes().items():
            if size != self._n_samples:
                logger.warning(
                    "%d unfinished groups have %d samples each, and --n-samples-per-prompt is %d: "
                    "they go on as they are",
                    number,
                    size,
                    self._n_samples,
                )
        if "ledger" in state:
            self.ledger.load_state_dict(state["ledger"])
        else:
            self.ledger = prompt_ledger.opened(self._num_groups, self._buffer.indices())

    def _next(self) -> SampleGroup:
        prompt, index = self._cursor.next(), self._num_groups
        group = make_group(prompt, index, self._n_samples, first=self._num_samples)
        self._num_groups += 1
        self._num_samples += self._n_samples
        return group


def _index_of(group: Sequence[Sample]) -> int:
    index = group[0].group_index if group else None
    if index is None:
        raise DataError("add_samples: a group needs samples with a group_index")
    return index


def make_group(
    prompt: Prompt, group_index: int, n_samples: int, *, first: int | None = None
) -> SampleGroup:
    """``n_samples`` pending samples of one prompt, numbered through the run from ``first`` on.

    Without ``first`` as if all groups before it had as many.
    """
    first = group_index * n_samples if first is None else first
    metadata = prompt.metadata | ({"source": prompt.source} if prompt.source else {})
    samples = tuple(
        Sample(
            group_index=group_index,
            index=index,
            rollout_id=index,
            prompt=copy.deepcopy(prompt.prompt),
            tokens=list(prompt.tokens or ()),
            label=prompt.label,
            metadata=copy.deepcopy(metadata),
        )
        for index in range(first, first + n_samples)
    )
    return SampleGroup(group_index, samples)
