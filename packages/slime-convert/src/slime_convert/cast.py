"""Hugging Face checkpoints in another precision: bfloat16, or FP8 in scaled blocks."""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert import quantized
from slime_convert.families import read_config
from slime_convert.hf import HfReader, write_hf
from slime_convert.hf.stream import NamedTensor, TensorStream, reported, streamed
from slime_convert.quantized import PACKED, SCALE, SCALE_INV, SHAPE, Quantization
from slime_convert.streaming.progress import Progress, quiet
from slime_convert.target.disk import check_room
from slime_convert.target.out_lock import beside, sole_writer

DTYPES = ("bf16", "fp8")
_PROJECTION = re.compile(r"(?<!eh)_proj(_with_mqa)?\.weight$")
"""The weights that published FP8 checkpoints have in 8 bits: not embeddings, norms, routers."""
_EXACT = re.compile(r"e_score_correction_bias$")
"""Kept in float32."""


def cast(
    source: Path, out: Path, dtype: str, *, max_shard_bytes: int, progress: Progress = quiet
) -> Path:
    """Write ``source`` in another precision, one tensor at a time.

    Raises:
        CheckpointError: it is in that precision already, its tensors are not in order, or there is
            no room for them; then ``out`` is as before.
    """
    config = read_config(source)
    kept = quantized.quantization(config)
    with HfReader(source, check_finite=True) as reader:
        reader.check_bytes()
        plain = _weights(reader, kept)
        written = "bf16" if kept.kind == "none" and _is_bfloat16(plain) else kept.kind
        if written == dtype:
            raise CheckpointError(f"{source} is {dtype} already")
        check_room(out, sum(_bytes_as(dtype, name, stream) for name, stream in plain.items()))
        items = reported(_items(reader, plain, dtype), progress)
        with sole_writer(out, beside(out)):
            return write_hf(
                out,
                items,
                source=source,
                max_shard_bytes=max_shard_bytes,
                config_changes=_config_changes(config, dtype),
            )


def _weights(reader: HfReader, kept: Quantization) -> dict[str, TensorStream]:
    """Every tensor by the name it has without quantization, as what is computed with."""
    if kept.kind == "fp8":
        return dict(_fp8_weights(reader))
    if kept.kind == "int4":
        return dict(_int4_weights(reader, kept))
    eight = [name for name in reader.names if reader.dtype(name).startswith("F8")]
    if eight:
        raise CheckpointError(f"`{eight[0]}` is {reader.dtype(eight[0])} and has no scale")
    return {name: _stream(reader, name) for name in reader.names}


def _is_bfloat16(plain: dict[str, TensorStream]) -> bool:
    return all(
        stream.dtype == torch.bfloat16 or _is_kept(name, stream) for name, stream in plain.items()
    )


def _fp8_weights(reader: HfReader) -> Iterator[tuple[str, TensorStream]]:
    for name in reader.names:
        if name.endswith(SCALE_INV):
            continue
        if not reader.dtype(name).startswith("F8"):
            yield name, _stream(reader, name)
            continue
        shape = reader.shape(name)
        scales = tuple(-(-size // quantized.BLOCK) for size in shape)
        _check_scale(reader, name, SCALE_INV, scales)

        def blocks(name: str = name) -> Iterator[Tensor]:
            return quantized.fp8_rows(reader, name)

        yield name, TensorStream(torch.bfloat16, shape, blocks)


def _int4_weights(reader: HfReader, kept: Quantization) -> Iterator[tuple[str, TensorStream]]:
    for full in reader.names:
        if full.endswith((SCALE, SHAPE)) and full.rpartition("_")[0] + PACKED in reader:
            continue
        if not full.endswith(PACKED):
            yield full, _stream(reader, full)
            continue
        name = full.removesuffix(PACKED)
        if name + SHAPE not in reader:
            raise CheckpointError(f"{reader.directory} holds `{full}` and no `{name}{SHAPE}`")
        rows, columns = map(int, reader.get(name + SHAPE).tolist())
        _check_scale(reader, name, SCALE, (rows, -(-columns // kept.group)))
        if reader.shape(full) != (rows, -(-columns // 8)):
            raise CheckpointError(
                f"`{full}` is {list(reader.shape(full))}, and a weight of [{rows}, {columns}] "
                f"takes [{rows}, {-(-columns // 8)}]"
            )

        def blocks(name: str = name, columns: int = columns) -> Iterator[Tensor]:
            return quantized.int4_rows(reader, name, columns, kept.group)

        yield name, TensorStream(torch.bfloat16, (rows, columns), blocks)


def _check_scale(reader: HfReader, name: str, suffix: str, shape: tuple[int, ...]) -> None:
    scale = name + suffix
    if scale not in reader:
        raise CheckpointError(f"{reader.directory} holds no `{scale}` for `{name}`")
    if reader.shape(scale) != shape:
        raise CheckpointError(
            f"`{scale}` is {list(reader.shape(scale))}, and the weight takes {list(shape)}"
        )


def _stream(reader: HfReader, name: str) -> TensorStream:
    return streamed(reader, name, row_unit=quantized.BLOCK)


def _items(reader: HfReader, plain: dict[str, TensorStream], dtype: str) -> Iterator[NamedTensor]:
    for name, stream in plain.items():
        if _is_kept(name, stream):
            yield name, stream
        elif dtype == "fp8" and _is_projection(name, stream):
            eight, scale = _quantize(stream)
            yield name, eight
            yield name + SCALE_INV, scale
        else:
            yield name, _rounded(stream)


def _bytes_as(dtype: str, name: str, stream: TensorStream) -> int:
    """How many bytes will be written of a tensor, the factors of its blocks included."""
    if _is_kept(name, stream):
        return stream.nbytes
    if dtype == "fp8" and _is_projection(name, stream):
        factors = prod(-(-size // quantized.BLOCK) for size in stream.shape)
        return prod(stream.shape) + factors * torch.float32.itemsize
    return prod(stream.shape) * torch.bfloat16.itemsize


def _is_kept(name: str, stream: TensorStream) -> bool:
    """Whether a tensor goes over as it is."""
    return not stream.dtype.is_floating_point or _EXACT.search(name) is not None


def _is_projection(name: str, stream: TensorStream) -> bool:
    return len(stream.shape) == 2 and _PROJECTION.search(name) is not None


def _rounded(stream: TensorStream) -> TensorStream:
    def blocks() -> Iterator[Tensor]:
        for block in stream.blocks():
            yield block.to(torch.bfloat16)

    return TensorStream(torch.bfloat16, stream.shape, blocks)


def _quantize(stream: TensorStream) -> tuple[Tensor, Tensor]:
    """In 8 bits, from pieces that begin with whole blocks."""
    eights, scales = zip(*map(quantized.to_fp8, stream.blocks()), strict=True)
    return torch.cat(eights), torch.cat(scales)


def _config_changes(config: Any, dtype: str) -> dict[str, Any]:
    """None removes a key."""
    changes: dict[str, Any] = {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in config}
    changes["quantization_config"] = quantized.FP8_CONFIG if dtype == "fp8" else None
    return changes
