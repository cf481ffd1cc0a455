"""An endless pass over files, shuffled inside a window, that goes on from any place exactly."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from slime_core.data.formats import Mark, Record
from slime_core.data.rows import Place, Source


class Reached(NamedTuple):
    """How far one source has been read in an epoch."""

    number: int = 0
    """Passes over it that are complete; a weight above 1 has several."""
    place: Place | None = None
    """None before its first row."""
    num_taken: int = 0
    """Rows taken in this epoch."""


class Window(NamedTuple):
    """Rows that are shuffled together: those behind ``reached``."""

    epoch: int
    number: int
    """In its epoch."""
    reached: tuple[Reached, ...]
    """Of each source, before the window."""


class Position(NamedTuple):
    """Between two rows."""

    window: Window
    offset: int = 0
    """Rows of the window before it."""

    def plain(self) -> dict[str, Any]:
        """As numbers and lists."""
        window = self.window
        reached = [_numbers(each) for each in window.reached]
        return {
            "epoch": window.epoch,
            "window": window.number,
            "reached": reached,
            "offset": self.offset,
        }


def from_plain(values: Any) -> Position:
    """The position that ``plain`` was called on."""
    reached = tuple(_reached(numbers) for numbers in values["reached"])
    return Position(Window(values["epoch"], values["window"], reached), values["offset"])


def _numbers(reached: Reached) -> list[int]:
    if reached.place is None:
        return [reached.number, reached.num_taken]
    file, mark, row = reached.place
    return [reached.number, reached.num_taken, file, row, *mark]


def _reached(numbers: Sequence[int]) -> Reached:
    number, taken, *rest = numbers
    if not rest:
        return Reached(number, None, taken)
    return Reached(number, Place(rest[0], Mark(*rest[2:]), rest[1]), taken)


class Item(NamedTuple):
    """A record in the order of the epoch."""

    source: str
    record: Record
    after: Position


class Windows:
    """Rows of all sources, epoch after epoch.

    Without shuffling, sources come one after the other. With it, a window holds rows of all of
    them, in shares of their bytes and weights, and is put into an order that depends only on the
    seed, the epoch and its number. Where windows begin differs from epoch to epoch.
    """

    def __init__(
        self, sources: Sequence[Source], *, num_rows: int, shuffle: bool, seed: int
    ) -> None:
        self._sources = sources
        self._num_rows = num_rows
        self._shuffle = shuffle
        self._seed = seed
        self._shares = [max(1, source.num_bytes) * source.slice.weight for source in sources]

    def start(self, epoch: int = 0) -> Position:
        """Before the first row of an epoch."""
        return Position(Window(epoch, 0, tuple(Reached() for _ in self._sources)))

    def items(self, position: Position) -> Iterator[Item]:
        """Everything behind ``position``; ends only where an epoch has no rows at all."""
        window, skip = position
        while True:
            tapes = [
                _Tape(source, window.epoch, reached)
                for source, reached in zip(self._sources, window.reached, strict=True)
            ]
            empty = not any(tape.reached.num_taken for tape in tapes)
            while rows := self._fill(tapes, window):
                empty = False
                for offset, (source, record) in enumerate(rows[skip:], skip + 1):
                    yield Item(source, record, Position(window, offset))
                skip = 0
                reached = tuple(tape.reached for tape in tapes)
                window = Window(window.epoch, window.number + 1, reached)
            if empty:
                return
            window, skip = self.start(window.epoch + 1)

    def _fill(self, tapes: "Sequence[_Tape]", window: Window) -> list[tuple[str, Record]]:
        size = self._num_rows
        if not self._shuffle:
            return self._rows_in_turn(tapes, size)
        if window.number == 0:
            half = size // 2
            size -= random.Random(f"{self._seed}/{window.epoch}").randrange(half + 1)
        rows = self._mixed(tapes, max(1, size))
        random.Random(f"{self._seed}/{window.epoch}/{window.number}").shuffle(rows)
        return rows

    def _rows_in_turn(self, tapes: "Sequence[_Tape]", size: int) -> list[tuple[str, Record]]:
        rows: list[tuple[str, Record]] = []
        for tape in tapes:
            while len(rows) < size and (record := tape.take()) is not None:
                rows.append((tape.spec, record))
        return rows

    def _mixed(self, tapes: "Sequence[_Tape]", size: int) -> list[tuple[str, Record]]:
        rows: list[tuple[str, Record]] = []
        left = list(range(len(tapes)))
        while left and len(rows) < size:
            behind = min(left, key=lambda i: (tapes[i].reached.num_taken + 1) / self._shares[i])
            record = tapes[behind].take()
            if record is None:
                left.remove(behind)
            else:
                rows.append((tapes[behind].spec, record))
        return rows


class _Tape:
    """One source in one epoch, from a place on."""

    def __init__(self, source: Source, epoch: int, reached: Reached) -> None:
        self.spec = source.spec
        self.reached = reached
        self._source = source
        self._epoch = epoch
        self._records = source.records(reached.place)

    def take(self) -> Record | None:
        """The next row that the epoch sees; None behind the last pass."""
        part = self._source.slice
        while self.reached.number < part.num_passes:
            number, _, taken = self.reached
            for record, place in self._records:
                if part.sees(place.row - 1, number=number, epoch=self._epoch):
                    self.reached = Reached(number, place, taken + 1)
                    return record
            self.reached = Reached(number + 1, None, taken)
            self._records = self._source.records()
        return None
