"""Put lengths into bins: first fit under a limit, equal work under it, Karmarkar-Karp without."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Bins = list[list[int]]
Weights = Sequence[float | int]

type _Tree = int | tuple[_Tree, _Tree] | None
"""Indices of a part: none, one, or those of two others. Joining two takes no copy."""

_TRIES = 16


def first_fit(lengths: Sequence[int], limit: int) -> Bins:
    """Indices of ``lengths`` in as few bins as first-fit-decreasing finds, each at most ``limit``.

    A length above the limit gets a bin of its own. Takes O(n log n): a tournament over the room
    that is left, in which an unopened bin is one with all its room.
    Source: D. S. Johnson, Near-optimal bin packing algorithms, 1973.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    alone: Bins = [[i] for i in order if lengths[i] > limit]
    rest = order[len(alone) :]
    leaves = 1 << max(0, len(rest) - 1).bit_length()
    room = [limit] * (2 * leaves)
    bins: Bins = [[] for _ in rest]
    for i in rest:
        length, node = lengths[i], 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        bins[node - leaves].append(i)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return alone + [sorted(bin_) for bin_ in bins if bin_]


def even_fit(lengths: Sequence[int], weights: Weights, limit: int, count: int) -> Bins | None:
    """``count`` bins of about equal weight and lengths of at most ``limit``, or None.

    The heaviest goes first, each into the lightest bin that has room. A length above the limit gets
    a bin of its own. None where a length finds no room in the lightest bins, which says that
    ``count`` bins are few for these lengths.
    Source: R. L. Graham, Bounds on multiprocessing timing anomalies, 1969.
    """
    bins: Bins = [[] for _ in range(count)]
    room = [limit] * count
    heap = [(0.0, b) for b in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: (-weights[i], i)):
        passed: list[tuple[float, int]] = []
        while heap and len(passed) < _TRIES:
            weight, b = heapq.heappop(heap)
            if lengths[i] <= room[b] or (not bins[b] and lengths[i] > limit):
                bins[b].append(i)
                room[b] -= lengths[i]
                heapq.heappush(heap, (weight + weights[i], b))
                break
            passed.append((weight, b))
        else:
            return None
        for entry in passed:
            if room[entry[1]] > 0:
                heapq.heappush(heap, entry)
    return [sorted(bin_) for bin_ in bins]


def split_to(bins: Bins, weights: Weights, count: int) -> Bins:
    """Halve the heaviest divisible bins until there are ``count``; empty ones fill what is left."""
    result: dict[int, list[int]] = {b: list(bin_) for b, bin_ in enumerate(bins)}
    heap = [(-_sum(bin_, weights), b) for b, bin_ in result.items() if len(bin_) > 1]
    heapq.heapify(heap)
    new = len(bins)
    for _ in range(count - len(bins)):
        if not heap:
            result[new] = []
            new += 1
            continue
        bin_ = result.pop(heapq.heappop(heap)[1])
        for half in balance([weights[i] for i in bin_], 2, equal_counts=False):
            result[new] = [bin_[i] for i in half]
            if len(half) > 1:
                heapq.heappush(heap, (-_sum(result[new], weights), new))
            new += 1
    return list(result.values())


def _sum(bin_: Sequence[int], weights: Weights) -> float:
    return float(sum(weights[i] for i in bin_))


@dataclass(slots=True)
class _Parts:
    """A partial partition: parts by decreasing sum."""

    sums: list[float]
    members: list[_Tree]

    @property
    def spread(self) -> float:
        return self.sums[0] - self.sums[-1]


def balance(weights: Weights, parts: int, *, equal_counts: bool) -> Bins:
    """Indices of ``weights`` in ``parts`` parts of nearly equal sums.

    With ``equal_counts`` the parts' sizes differ by at most one. Parts may be empty when there are
    fewer weights than parts. Takes O(n log n) with equal counts, else that times ``parts``.
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
    return [_indices(tree) for tree in heap[0][2].members]


def _singletons(weights: Weights, parts: int) -> list[_Parts]:
    rest = parts - 1
    return [
        _Parts([float(weight), *[0.0] * rest], [i, *[None] * rest])
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
        states.append(_Parts(sums, [*chunk, *[None] * missing]))
    return states


def _difference(a: _Parts, b: _Parts) -> _Parts:
    """Add the largest part of one to the smallest of the other, and so on."""
    sums = [x + y for x, y in zip(a.sums, reversed(b.sums), strict=True)]
    members = [_join(x, y) for x, y in zip(a.members, reversed(b.members), strict=True)]
    ranked = sorted(range(len(sums)), key=sums.__getitem__, reverse=True)
    return _Parts([sums[i] for i in ranked], [members[i] for i in ranked])


def _join(a: _Tree, b: _Tree) -> _Tree:
    if a is None or b is None:
        return b if a is None else a
    return a, b


def _indices(tree: _Tree) -> list[int]:
    """The leaves in increasing order."""
    found: list[int] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += node
        elif node is not None:
            found.append(node)
    return sorted(found)
