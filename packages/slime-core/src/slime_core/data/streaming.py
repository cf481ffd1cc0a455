"""Prompts read while they are needed, with no more than a window of rows in memory."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slime_core.config.data import DataConfig
from slime_core.data.ahead import ReadAhead
from slime_core.data.faults import BEYOND_CONTEXT, OF_LENGTH, TOO_LONG, Faults
from slime_core.data.loading import check
from slime_core.data.reading import (
    Job,
    Outcome,
    Prompt,
    RowReader,
    find_columns,
    named,
    open_sources,
)
from slime_core.data.window import Item, Windows, from_plain
from slime_core.errors import DataError

logger = logging.getLogger(__name__)


class StreamedPrompts:
    """A cursor over files; every row has been looked into before, unless bad ones are skipped.

    Processes that read ahead are started by the first ``next`` and ended by ``close``.

    Raises:
        DataError: rows that cannot be used, under --data-error-policy stop.
    """

    def __init__(self, reader: RowReader, data: DataConfig, *, sources: Sequence[str]) -> None:
        self._data = data
        self._sources = open_sources(sources)
        self._job = Job(reader, find_columns(reader, self._sources), data.id_key)
        self._counts: dict[str, int] | None = None
        if data.data_error_policy == "stop":
            self._counts = check(self._job, data, self._sources)
        self._windows = Windows(
            self._sources,
            num_rows=data.streaming_window,
            shuffle=data.rollout_shuffle,
            seed=data.rollout_seed,
        )
        self._faults = Faults("skip")
        self._ahead: ReadAhead | None = None
        self._position = self._windows.start()
        self._outcomes: Iterator[tuple[Item, Outcome]] | None = None
        self._last = self._position

    def __len__(self) -> int:
        """Rows of an epoch, those included that turn out to be no prompts."""
        if self._counts is None:
            self._counts = {source.spec: len(source) for source in self._sources}
        counts = self._counts
        return sum(source.slice.epoch_len(counts[source.spec]) for source in self._sources)

    @property
    def epoch(self) -> int:
        """How many passes are complete."""
        return self._position.window.epoch

    def next(self) -> Prompt:
        """The next prompt, in this epoch or the one after it."""
        if self._outcomes is None:
            self._ahead = self._ahead or ReadAhead(self._job, self._data.num_data_workers)
            items = self._windows.items(self._position)
            self._outcomes = self._ahead.run(items, lambda item: (item.source, item.record))
        for item, outcome in self._outcomes:
            self._position = item.after
            if outcome.prompt is not None:
                self._last = item.after
                return named(outcome.prompt, item.source, len(self._sources))
            self._leave_out(outcome)
        raise DataError(f"no prompts in {self._names()}: there are no rows")

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last prompt that was taken, not the last that was read."""
        return {"sources": [s.spec for s in self._sources], "position": self._position.plain()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s position; with other files, from their beginning."""
        names = [source.spec for source in self._sources]
        if state.get("sources") == names:
            self._position = from_plain(state["position"])
        else:
            epoch = int(state.get("epoch", 0))
            logger.warning(
                "the checkpoint's prompts were read from %s: %s are read from their beginning",
                state.get("sources", "memory"),
                names,
            )
            self._position = self._windows.start(epoch)
        self._last = self._position
        self._outcomes = None

    def metrics(self) -> dict[str, float]:
        """Rows that were left out so far."""
        return self._faults.metrics()

    def close(self) -> None:
        """End the processes that read ahead."""
        self._outcomes = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _leave_out(self, outcome: Outcome) -> None:
        if self._data.data_error_policy == "stop" and outcome.kind != TOO_LONG:
            advice = "mend it, or leave such rows out with --data-error-policy skip"
            raise DataError(
                f"{outcome.message}. Rows were looked into before the run began, but not rendered: "
                f"{OF_LENGTH if outcome.kind == BEYOND_CONTEXT else advice}"
            )
        kind = outcome.kind
        self._faults.add(kind, outcome.message)
        if self._faults.counts[kind] <= len(self._faults.named[kind]):
            logger.warning("left out (%s): %s", kind, outcome.message)
        if self.epoch > self._last.window.epoch + 1:
            counts = dict(self._faults.counts)
            raise DataError(f"no prompts in {self._names()}: all rows were left out, {counts}")

    def _names(self) -> str:
        return ", ".join(source.spec for source in self._sources)
