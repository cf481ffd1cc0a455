"""Which query rows attend to which key rows in a packed microbatch, as index tensors.

A span is a run of query rows of one sequence together with every key row up to the last of them.
Without context parallelism each sequence is one span. With it, a rank's two chunks of a sequence
are two spans, and key rows are numbered in the rows of all ranks laid end to end, so gathered keys
need no reordering.

Both forms an attention kernel may want are made once per microbatch and shared by all layers:
``Varlen`` (rows end to end with cumulative lengths) and ``Padded`` (rectangles of like length).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from slime_core.transfer import sent
from torch import Tensor

from slime_megatron.packing.rows import Picked, where_taken
from slime_megatron.packing.zigzag import gathered_order

_MAX_WASTE = 2
"""A rectangle holds no sequence shorter than the longest one divided by this."""


@dataclass(frozen=True)
class Spans:
    """Per span: its query rows, and the key rows of the same sequence up to its last query."""

    queries: tuple[Int[Tensor, " rows"], ...]
    keys: tuple[Int[Tensor, " rows"], ...]
    in_order: bool
    """Whether queries and keys, end to end, are simply all rows."""
    num_keys: int = 0
    """Key rows of all ranks together, of which a rank's spans may leave some out."""


def causal_spans(lengths: Sequence[int], *, cp_size: int = 1, cp_rank: int = 0) -> Spans:
    """The spans of sequences of padded ``lengths``, for one context-parallel rank."""
    order = gathered_order(list(lengths), cp_size=cp_size)
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    start = local = 0
    for length in lengths:
        if cp_size == 1:
            chunks = [(0, length)]
        else:
            size = length // (2 * cp_size)
            chunks = [(c * size, size) for c in (cp_rank, 2 * cp_size - 1 - cp_rank)]
        for first, size in chunks:
            if size:
                queries.append(torch.arange(local, local + size))
                keys.append(order[start : start + first + size])
            local += size
        start += length
    return Spans(tuple(queries), tuple(keys), in_order=cp_size == 1, num_keys=sum(lengths))


@dataclass(frozen=True)
class Varlen:
    """Spans laid end to end for a variable-length kernel (causal, aligned at the last key)."""

    keys: Picked | None
    """The key rows of all spans; None: all rows in order, as the queries always are."""
    cu_queries: Int[Tensor, " spans_plus_1"]
    cu_keys: Int[Tensor, " spans_plus_1"]
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> "Varlen":
        """Concatenate ``spans``; the queries of all spans cover all local rows in order."""

        def cumulative(rows: tuple[Tensor, ...]) -> Tensor:
            counts = torch.tensor([0] + [r.numel() for r in rows])
            return sent(counts.cumsum(0).to(torch.int32), device)

        return cls(
            keys=None if spans.in_order else _sent(_all_keys(spans), device),
            cu_queries=cumulative(spans.queries),
            cu_keys=cumulative(spans.keys),
            max_queries=max(r.numel() for r in spans.queries),
            max_keys=max(r.numel() for r in spans.keys),
        )


def _all_keys(spans: Spans) -> Picked:
    return where_taken(torch.cat(spans.keys), spans.num_keys)


def _sent(picked: Picked, device: torch.device) -> Picked:
    return Picked(
        sent(picked.taken, device), sent(picked.places, device), sent(picked.absent, device)
    )


@dataclass(frozen=True)
class Rectangle:
    """Some spans padded to one shape [spans, queries] by [spans, keys]."""

    query_rows: Int[Tensor, "spans queries"]
    key_rows: Int[Tensor, "spans keys"]
    mask: Bool[Tensor, "spans 1 queries keys"] | None
    """None: plain causal, queries and keys being the same rows (padding comes last, so no real
    query sees a padded key)."""


@dataclass(frozen=True)
class Padded:
    """Spans as rectangles."""

    rectangles: tuple[Rectangle, ...]
    restore: Int[Tensor, " rows"]
    """Picks the real rows of all rectangles, flattened and laid end to end, in the order of the
    local rows."""

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> "Padded":
        """Group spans of like length; what is padded away costs at most a constant factor."""
        rectangles: list[Rectangle] = []
        origins: list[Tensor] = []
        flat: list[Tensor] = []
        base = 0
        for members in _groups(spans):
            rectangle = _rectangle(
                [spans.queries[i] for i in members], [spans.keys[i] for i in members]
            )
            width = rectangle.query_rows.shape[1]
            for row, i in enumerate(members):
                count = spans.queries[i].numel()
                flat.append(torch.arange(base + row * width, base + row * width + count))
                origins.append(spans.queries[i])
            base += rectangle.query_rows.numel()
            rectangles.append(_to(rectangle, device))
        order = torch.argsort(torch.cat(origins))
        return cls(tuple(rectangles), sent(torch.cat(flat)[order], device))


def _groups(spans: Spans) -> list[list[int]]:
    """Spans whose key counts are within a factor of each other, longest first."""
    order = sorted(range(len(spans.keys)), key=lambda i: -spans.keys[i].numel())
    groups: list[list[int]] = []
    for i in order:
        head = groups[-1][0] if groups else None
        if head is not None and _alike(spans, head, i):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _alike(spans: Spans, head: int, other: int) -> bool:
    return spans.keys[other].numel() * _MAX_WASTE >= spans.keys[head].numel()


def _rectangle(queries: list[Tensor], keys: list[Tensor]) -> Rectangle:
    """Pad to the longest with row 0, which nobody reads."""
    height, width = max(q.numel() for q in queries), max(k.numel() for k in keys)
    query_rows = torch.zeros(len(queries), height, dtype=torch.long)
    key_rows = torch.zeros(len(keys), width, dtype=torch.long)
    for row, (q, k) in enumerate(zip(queries, keys, strict=True)):
        query_rows[row, : q.numel()] = q
        key_rows[row, : k.numel()] = k
    if all(q.numel() == k.numel() for q, k in zip(queries, keys, strict=True)):
        return Rectangle(query_rows, key_rows, None)
    first = torch.tensor([k.numel() - q.numel() for q, k in zip(queries, keys, strict=True)])
    position = first[:, None, None] + torch.arange(height)[None, :, None]
    return Rectangle(query_rows, key_rows, (torch.arange(width) <= position)[:, None])


def _to(rectangle: Rectangle, device: torch.device) -> Rectangle:
    return Rectangle(
        sent(rectangle.query_rows, device),
        sent(rectangle.key_rows, device),
        sent(rectangle.mask, device),
    )
