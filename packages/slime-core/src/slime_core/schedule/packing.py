"""Put lengths into bins: first fit under a limit, Karmarkar-Karp for equal sums."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Bins = list[list[int]]
Weights = Sequence[float | int]


def first_fit(lengths: Sequence[int], limit: int) -> Bins:
    """Indices of ``lengths`` in as few bins as first-fit-decreasing finds, each at most ``limit``.

    A length above the limit gets a bin of its own.
    Source: D. S. Johnson, Near-optimal bin packing algorithms, 1973.
    """
    bins: Bins = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        found = next((b for b, free in enumerate(room) if free >= lengths[i]), None)
        if found is None:
            bins.append([i])
            room.append(limit - lengths[i])
        else:
            bins[found].append(i)
            room[found] -= lengths[i]
    return [sorted(bin_) for bin_ in bins]


def split_to(bins: Bins, weights: Weights, count: int) -> Bins:
    """Halve the heaviest divisible bins until there are ``count``; empty ones fill what is left."""
    result = [list(bin_) for bin_ in bins]
    while len(result) < count:
        divisible = [b for b, bin_ in enumerate(result) if len(bin_) > 1]
        if not divisible:
            return result + [[] for _ in range(count - len(result))]
        heaviest = max(divisible, key=lambda b: sum(weights[i] for i in result[b]))
        bin_ = result.pop(heaviest)
        first, second = balance([weights[i] for i in bin_], 2, equal_counts=False)
        result += [[bin_[i] for i in first], [bin_[i] for i in second]]
    return result


@dataclass(slots=True)
class _Parts:
    """A partial partition: parts by decreasing sum."""

    sums: list[float]
    members: Bins

    @property
    def spread(self) -> float:
        return self.sums[0] - self.sums[-1]


def balance(weights: Weights, parts: int, *, equal_counts: bool) -> Bins:
    """Indices of ``weights`` in ``parts`` parts of nearly equal sums.

    With ``equal_counts`` the parts' sizes differ by at most one. Parts may be empty when there are
    fewer weights than parts.
    Source: N. Karmarkar and R. M. Karp, The differencing method of set partitioning, 1982; the
    equal-count start is the balanced variant of Michiels et al., 2003.
    """
    states = _tuples(weights, parts) if equal_counts else _singletons(weights, parts)
    if not states:
        return [[] for _ in range(parts)]
    heap = [(-state.spread, order, state) for order, state in enumerate(states)]
    heapq.heapify(heap)
    order = len(heap)
    while len(heap) > 1:
        merged = _difference(heapq.heappop(heap)[2], heapq.heappop(heap)[2])
        heapq.heappush(heap, (-merged.spread, order, merged))
        order += 1
    return [sorted(members) for members in heap[0][2].members]


def _singletons(weights: Weights, parts: int) -> list[_Parts]:
    rest = parts - 1
    return [
        _Parts([float(weight), *[0.0] * rest], [[i], *([] for _ in range(rest))])
        for i, weight in enumerate(weights)
    ]


def _tuples(weights: Weights, parts: int) -> list[_Parts]:
    """``parts`` neighbours of the sorted weights each, so that merging keeps counts equal."""
    ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    states: list[_Parts] = []
    for start in range(0, len(ranked), parts):
        chunk = ranked[start : start + parts]
        missing = parts - len(chunk)
        sums = [float(weights[i]) for i in chunk] + [0.0] * missing
        states.append(_Parts(sums, [*([i] for i in chunk), *([] for _ in range(missing))]))
    return states


def _difference(a: _Parts, b: _Parts) -> _Parts:
    """Add the largest part of one to the smallest of the other, and so on."""
    sums = [x + y for x, y in zip(a.sums, reversed(b.sums), strict=True)]
    members = [x + y for x, y in zip(a.members, reversed(b.members), strict=True)]
    ranked = sorted(range(len(sums)), key=lambda i: -sums[i])
    return _Parts([sums[i] for i in ranked], [members[i] for i in ranked])
