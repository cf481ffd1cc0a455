"""Cutting full Megatron tensors into what each tensor-parallel rank holds, and joining them again.

For the parameters of routed experts (``parameter.expert``) rank and size are those of the
expert-tensor-parallel group.
"""

from collections.abc import Sequence

import torch
from slime_core.errors import CheckpointError
from torch import Tensor
from torch.nn.functional import pad

from slime_convert.rules import Parameter, Split

_DIM = {Split.COLUMN: 0, Split.VOCAB: 0, Split.ROW: 1}


def padded_vocab_size(vocab_size: int, tp_size: int, *, divisible_by: int = 128) -> int:
    """Return the rows of Megatron's embedding: the next multiple of divisible_by * tp_size.

    Source: ``megatron.training.vocab_utils.calculate_padded_vocab_size``;
    ``divisible_by`` is --make-vocab-size-divisible-by.
    """
    multiple = divisible_by * tp_size
    return -(-vocab_size // multiple) * multiple


def shard(
    parameter: Parameter,
    full: Tensor,
    tp_rank: int,
    tp_size: int,
    *,
    padded_vocab: int | None = None,
) -> Tensor:
    """Return this rank's part of ``full``, the Megatron tensor without vocabulary padding.

    ``padded_vocab`` is the number of rows over all ranks for vocabulary tensors; None pads to
    ``padded_vocab_size``. Added rows are zero. The part may be a view of ``full``.
    """
    if parameter.split is Split.REPLICATED:
        return full
    if parameter.split is Split.GATED:
        halves = [_cut(parameter, half, 0, tp_rank, tp_size) for half in full.chunk(2)]
        return torch.cat(halves)
    if parameter.split is Split.VOCAB:
        full = _pad_rows(parameter, full, padded_vocab or padded_vocab_size(len(full), tp_size))
    return _cut(parameter, full, _DIM[parameter.split], tp_rank, tp_size)


def unshard(parameter: Parameter, parts: Sequence[Tensor]) -> Tensor:
    """Return the full tensor from the parts of all ranks, in rank order, without padding.

    For a replicated parameter that is the part of rank 0.
    """
    if len(parts) == 1 or parameter.split is Split.REPLICATED:
        full = parts[0]
    elif parameter.split is Split.GATED:
        upper, lower = zip(*(part.chunk(2) for part in parts), strict=True)
        full = torch.cat([*upper, *lower])
    else:
        full = torch.cat(list(parts), dim=_DIM[parameter.split])
    if parameter.split is Split.VOCAB:
        full = full[: parameter.shape[0]]
    if tuple(full.shape) != parameter.shape:
        raise CheckpointError(
            f"`{parameter.name}`: {len(parts)} parts of shape {list(parts[0].shape)} join to "
            f"{list(full.shape)}, and config.json implies {list(parameter.shape)}"
        )
    return full


def _cut(parameter: Parameter, full: Tensor, dim: int, tp_rank: int, tp_size: int) -> Tensor:
    size = full.shape[dim]
    if size % tp_size:
        raise CheckpointError(
            f"`{parameter.name}`: {size} {'columns' if dim else 'rows'} do not split evenly over "
            f"{tp_size} tensor-parallel ranks: --tensor-model-parallel-size must divide {size}"
        )
    return full.narrow(dim, tp_rank * (size // tp_size), size // tp_size)


def _pad_rows(parameter: Parameter, full: Tensor, rows: int) -> Tensor:
    if rows < len(full):
        raise CheckpointError(
            f"`{parameter.name}` has {len(full)} rows, and the model only {rows}: "
            f"--vocab-size must be at least {len(full)}"
        )
    return pad(full, (0, 0, 0, rows - len(full))) if rows > len(full) else full
