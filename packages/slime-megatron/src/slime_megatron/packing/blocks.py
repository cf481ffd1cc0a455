"""Packed sequences as rectangles, for kernels that take no packed batch.

Sequences of like length are laid side by side, padded at their end; under a causal mask no real row
sees a padded one. cuDNN plans for a tenth of a second when it meets a shape for the first time, so
rectangles come in few shapes: eight widths between a power of two and the next, and powers of two
as their counts. Where all sequences have one length that is such a width, the packed rows are a
rectangle already and nothing is moved.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from slime_core.transfer import sent
from torch import Tensor

from slime_megatron.packing.rows import Picked

MIN_STEP = 16
"""Of the widths of rectangles."""
STEPS = 8
"""Widths between a power of two and the next; so at most an eighth of a sequence is padded on."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention on [sequences, heads, rows, d]."""


@dataclass(frozen=True)
class Blocks:
    """Where the rows of packed sequences stand in rectangles laid end to end."""

    shapes: tuple[tuple[int, int], ...]
    """(sequences, rows of each) of every rectangle."""
    there: Picked | None = None
    """The packed row at every place, row 0 where there is none; None where places are rows."""
    back: Picked | None = None
    """The place of every packed row."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Blocks":
        """Rectangles for sequences of ``lengths`` rows that lie end to end."""
        if set(lengths) == {_width(lengths[0])}:
            return cls(((len(lengths), lengths[0]),))
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        groups = _groups(lengths)
        shapes = tuple((len(members), _width(lengths[members[0]])) for members in groups)
        rows = torch.zeros(sum(count * width for count, width in shapes), dtype=torch.long)
        padding = torch.ones_like(rows, dtype=torch.bool)
        place = 0
        for members, (_, width) in zip(groups, shapes, strict=True):
            for i in members:
                rows[place : place + lengths[i]] = torch.arange(starts[i], starts[i + 1])
                padding[place : place + lengths[i]] = False
                place += width
        places = torch.empty(sum(lengths), dtype=torch.long)
        places[rows[~padding]] = torch.arange(rows.numel())[~padding]
        to, origin = sent(rows, device), sent(places, device)
        padded = sent(padding, device)[None] if bool(padding.any()) else None
        return cls(shapes, Picked(to, origin[None]), Picked(origin, to[None], padded))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> Tensor:
        """Causal attention within every sequence: [rows, heads, d] in and out."""
        sizes = [count * width for count, width in self.shapes]
        # Split, not sliced, whose gradient is written into zeros.
        pieces = zip(*(self._spread(x).split(sizes) for x in (q, k, v)), strict=True)
        parts: list[Tensor] = []
        for shape, piece in zip(self.shapes, pieces, strict=True):
            block = [x.unflatten(0, shape).transpose(1, 2) for x in piece]
            parts.append(kernel(*block).transpose(1, 2).flatten(0, 1))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.back is None else self.back.of(out)

    def _spread(self, x: Tensor) -> Tensor:
        return x if self.there is None else self.there.of(x)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Sequences of one width each, longest first, in powers of two."""
    alike: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        alike.setdefault(_width(lengths[i]), []).append(i)
    return [part for members in alike.values() for part in _powers_of_two(members)]


def _powers_of_two(members: list[int]) -> Iterator[list[int]]:
    while members:
        count = 1 << (len(members).bit_length() - 1)
        yield members[:count]
        members = members[count:]


def _width(length: int) -> int:
    """The next of few."""
    above = 1 << (length - 1).bit_length()
    step = max(MIN_STEP, above // (2 * STEPS))
    return -(-length // step) * step
