"""Hugging Face weights straight into the shards of a running model, at any TP, PP, EP and ETP."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from slime_convert.families import Family
from slime_convert.hf import HfReader
from slime_convert.rules import HfTensor, Parameter, Split, Transform
from slime_convert.shards import shard
from slime_convert.transforms import to_megatron
from slime_core.errors import CheckpointError
from torch import Tensor, nn
from torch.nn.functional import pad

from slime_megatron.mcore.weights.places import TensorRanks, located, tensor_ranks

_SLICED_DIM = {
    (Transform.COPY, Split.COLUMN): 0,
    (Transform.COPY, Split.ROW): 1,
    (Transform.QKV, Split.COLUMN): 0,
    (Transform.STACK, Split.GATED): 0,
}
"""Where a rank's part is made of the same slice of every Hugging Face tensor, and along what."""


@torch.no_grad()
def load_hf(
    chunks: Sequence[nn.Module],
    family: Family,
    hf_config: Mapping[str, Any],
    directory: Path,
    *,
    optimizer: Any = None,
) -> None:
    """Fill the model from the safetensors files of ``directory``.

    Each rank reads what it holds, tensor by tensor and where possible only its slice. Before
    anything is written every name and shape of the checkpoint is compared with what config.json
    implies; a missing, unknown or misshapen tensor is a ``CheckpointError`` listing all of them,
    the same on every rank. A tied model may carry ``lm_head.weight`` all the same (it is not read),
    and tensors that the family ignores, such as rotary ``inv_freq`` buffers, may be there.

    Values are converted to the dtype of the parameters. Give ``optimizer`` when it exists already,
    so that its float32 main parameters follow.
    """
    table = family.parameters(hf_config)
    with HfReader(directory) as reader:
        reader.check(table)
        for chunk in chunks:
            for parameter, tensor in located(chunk, table):
                if parameter.hf[0].name in table.optional and parameter.hf[0].name not in reader:
                    continue
                part = _read_part(reader, parameter, tensor.shape[0])
                if part.shape != tensor.shape:
                    raise CheckpointError(
                        f"`{parameter.name}`: the model holds {list(tensor.shape)} on this rank, "
                        f"and the checkpoint gives {list(part.shape)}: the architecture flags and "
                        f"{directory / 'config.json'} disagree"
                    )
                tensor.copy_(part)
    if optimizer is not None:
        optimizer.reload_model_params()


def _read_part(reader: HfReader, parameter: Parameter, local_rows: int) -> Tensor:
    """This rank's part, in the checkpoint's dtype; ``local_rows`` include vocabulary padding."""
    place = tensor_ranks(parameter)
    kind = (parameter.transform, parameter.split)
    if kind == (Transform.COPY, Split.VOCAB):
        rows = slice(place.rank * local_rows, (place.rank + 1) * local_rows)
        return _read_rows(reader, parameter.hf[0], rows)
    if place.size > 1 and kind in _SLICED_DIM and _divides(parameter, place.size):
        pieces = [_read_slice(reader, tensor, _SLICED_DIM[kind], place) for tensor in parameter.hf]
        return to_megatron(_part_of(parameter, pieces, place), pieces)
    full = to_megatron(parameter, [reader.get(tensor.name) for tensor in parameter.hf])
    return shard(parameter, full, place.rank, place.size)


def _read_rows(reader: HfReader, tensor: HfTensor, rows: slice) -> Tensor:
    """The rows of a vocabulary tensor, zero beyond its end."""
    total = tensor.shape[0]
    part = reader.get(tensor.name, slice(min(rows.start, total), min(rows.stop, total)))
    return pad(part, (0, 0, 0, rows.stop - rows.start - len(part)))


def _divides(parameter: Parameter, size: int) -> bool:
    dim = _SLICED_DIM[parameter.transform, parameter.split]
    if parameter.transform is Transform.QKV and parameter.num_query_groups % size:
        return False
    return all(tensor.shape[dim] % size == 0 for tensor in parameter.hf)


def _read_slice(reader: HfReader, tensor: HfTensor, dim: int, place: TensorRanks) -> Tensor:
    length = tensor.shape[dim] // place.size
    here = slice(place.rank * length, (place.rank + 1) * length)
    return reader.get(tensor.name, *[slice(None)] * dim, here)


def _part_of(parameter: Parameter, pieces: Sequence[Tensor], place: TensorRanks) -> Parameter:
    """The parameter of a model that is as small as this rank's part."""
    tensors = [
        HfTensor(tensor.name, tuple(piece.shape))
        for tensor, piece in zip(parameter.hf, pieces, strict=True)
    ]
    groups = parameter.num_query_groups // place.size
    return replace(parameter, hf=tuple(tensors), num_query_groups=groups)
