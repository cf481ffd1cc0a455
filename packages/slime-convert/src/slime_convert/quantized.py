"""Weights in 8 and 4 bits, as published checkpoints keep them.

Block-scaled FP8 (DeepSeek-V3, arXiv:2412.19437, section 3.3): a weight is ``float8_e4m3fn`` and has
beside it ``<name>_scale_inv``, one float32 for each block of 128 x 128 values::

    value = float8 * scale_inv[row // 128, column // 128]

Group-quantised INT4 (compressed-tensors ``pack-quantized``, as in Kimi K2 Thinking): eight values
to an int32 in ``<name>_packed``, lowest bits first, and in ``<name>_scale`` one factor for each
group of consecutive columns; ``<name>_shape`` is the shape of the weight::

    value = (four bits - 8) * scale[row, column // group]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.hf import HfReader

BLOCK = 128
FP8_MAX = 448.0
"""Of float8_e4m3fn."""
FP8_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
SCALE_INV = "_scale_inv"
PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
"""Behind the name of a weight: the names of the tensors that it is kept as."""
ROWS = 32 * BLOCK
"""Of a weight, in memory at a time."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a checkpoint are kept."""

    kind: str
    """"none", "fp8" or "int4"."""
    group: int = 0


def quantization(config: Mapping[str, Any]) -> Quantization:
    """Return what config.json says about it, or refuse what cannot be read."""
    given: Mapping[str, Any] | None = config.get("quantization_config")
    if not given:
        return Quantization("none")
    method = given.get("quant_method")
    if method == "fp8" and list(given.get("weight_block_size") or []) == [BLOCK, BLOCK]:
        return Quantization("fp8")
    if method == "compressed-tensors" and given.get("format") == "pack-quantized":
        groups: Any = list((given.get("config_groups") or {}).values())
        weights = groups[0].get("weights", {}) if len(groups) == 1 else {}
        if _is_plain_int4(weights):
            return Quantization("int4", int(weights["group_size"]))
    raise CheckpointError(
        f"config.json says quantization_config.quant_method = {method!r}: fp8 in blocks of "
        "128 x 128 and compressed-tensors with groups of 4-bit integers (pack-quantized, "
        "symmetric, columns not reordered) are read"
    )


def _is_plain_int4(weights: Mapping[str, Any]) -> bool:
    """Whether no zero points and no order of columns (``g_idx``) take part in the values."""
    return (
        weights.get("num_bits") == 4
        and weights.get("type", "int") == "int"
        and weights.get("strategy") == "group"
        and weights.get("symmetric", True)
        and weights.get("actorder") in (None, False, "weight", "static")
    )


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight in 8 bits, and the factors of its blocks; a block of zeros has factor 1.

    So has one of values so small that they are zeros in 8 bits.
    """
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = weight.new_zeros(blocks[0] * BLOCK, blocks[1] * BLOCK, dtype=torch.float32)
    padded[:rows, :columns] = weight
    view = padded.view(blocks[0], BLOCK, blocks[1], BLOCK)
    largest = view.abs().amax(dim=(1, 3))
    scale = largest / FP8_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # it may round to 0 too
    quantized = (view / scale[:, None, :, None]).clamp_(-FP8_MAX, FP8_MAX)
    eight = quantized.to(torch.float8_e4m3fn).view(padded.shape)
    return eight[:rows, :columns].contiguous(), scale


def from_fp8(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the values of rows that begin with a whole block."""
    rows, columns = weight.shape
    wide = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (weight.float() * wide).to(dtype)


def from_int4(
    packed: Tensor, scale: Tensor, columns: int, group: int, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Return the values of rows; ``columns`` is the width of the weight.

    ``group``: how many columns share a factor; those of the last may be fewer.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    four = (packed.unsqueeze(-1) >> shifts) & 0xF
    values = four.flatten(1)[:, :columns].float() - 8
    wide = scale.float().repeat_interleave(group, 1)[:, :columns]
    return (values * wide).to(dtype)


def fp8_rows(reader: HfReader, name: str) -> Iterator[Tensor]:
    """Yield the values of a weight in 8 bits, some rows at a time."""
    rows = reader.shape(name)[0]
    scales = reader.rows(name + SCALE_INV, 0, reader.shape(name + SCALE_INV)[0]).float()
    for begin in range(0, rows, ROWS):
        end = min(begin + ROWS, rows)
        part = scales[begin // BLOCK : -(-end // BLOCK)]
        yield from_fp8(reader.rows(name, begin, end), part)


def int4_rows(reader: HfReader, name: str, columns: int, group: int) -> Iterator[Tensor]:
    """Yield the values of a weight in 4 bits, some rows at a time."""
    rows = reader.shape(name + PACKED)[0]
    for begin in range(0, rows, ROWS):
        end = min(begin + ROWS, rows)
        packed = reader.rows(name + PACKED, begin, end)
        yield from_int4(packed, reader.rows(name + SCALE, begin, end), columns, group)
