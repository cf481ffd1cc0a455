"""Megatron to Hugging Face: whole checkpoints, a few parameters in memory at a time.

First everything that can be refused is looked for, then parameters are read in the order of the
layers, taken apart and written; the directory appears when it is complete.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path

from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert import transforms
from slime_convert.dist.model import Model
from slime_convert.dist.places import Place, named_by_transformer_engine
from slime_convert.dist.reader import MODEL_PREFIXES, DistReader
from slime_convert.hf import write_hf
from slime_convert.hf.carried import CarriedTensors
from slime_convert.hf.stream import BLOCK_BYTES, NamedTensor, TensorStream, reported
from slime_convert.hf.writer import GIB
from slime_convert.rules import Parameter, Split, Transform
from slime_convert.saved_model import differences
from slime_convert.streaming.prefetch import prefetch
from slime_convert.streaming.progress import Progress, quiet
from slime_convert.target.disk import check_room
from slime_convert.target.out_lock import beside, sole_writer

WHOLE_BYTES = 128 << 20
"""Parameters up to this size are taken apart in memory, larger ones row by row."""


def dist_to_hf(
    checkpoint: Path,
    hf_config: Path,
    out: Path,
    *,
    max_shard_bytes: int = 5 * GIB,
    progress: Progress = quiet,
) -> Path:
    """Write the Megatron checkpoint in the directory ``checkpoint`` as one of Hugging Face.

    ``hf_config``: a directory with config.json, tokenizer and the other files to go with it.
    Tensors in it that are not trained and belong to the checkpoint are taken over.

    Raises:
        CheckpointError: the checkpoint is not whole or not of that model; then ``out`` is as
            before.
    """
    model = Model.of(hf_config)
    with DistReader(checkpoint, check_finite=True) as reader:
        check(reader, model)
        check_room(out, _total(reader, model))
        carried = CarriedTensors(hf_config, model.table)
        with (
            sole_writer(out, beside(out)),
            prefetch(hf_tensors(reader, model), size=_bytes_held) as trained,
        ):
            return write_hf(
                out,
                reported(chain(trained, carried), progress),
                source=hf_config,
                max_shard_bytes=max_shard_bytes,
                expected={*model.table.hf_tensors, *carried.names},
            )


def size_in(checkpoint: Path, model: Model) -> int:
    """Return the bytes of all tensors that ``dist_to_hf`` will write, those taken over aside."""
    with DistReader(checkpoint) as reader:
        check(reader, model)
        return _total(reader, model)


def check(reader: DistReader, model: Model) -> None:
    """Raise one ``CheckpointError`` for all that is missing, misshapen or of another model."""
    problems = differences(reader.common(), model.family, model.arguments)
    if problems:
        raise CheckpointError(
            f"{reader.directory} is a checkpoint of another model than config.json describes: "
            f"{'; '.join(problems)}"
        )
    places = [(parameter, _found(reader, model, parameter)) for parameter in model.table.exported]
    missing = sorted({where.key for _, where in places if where.key not in reader})
    misshapen = sorted(
        {
            f"{where.key} {list(reader.shape(where.key))}"
            for parameter, where in places
            if where.key in reader and not _fits(reader.shape(where.key), parameter, where)
        }
    )
    expected = {where.key for _, where in places}
    unknown = [key for key in reader.keys if key.startswith(MODEL_PREFIXES) and key not in expected]
    found = {"missing": missing, "of another shape": misshapen, "unknown to the model": unknown}
    texts = [f"{what}: {', '.join(keys[:5])}" for what, keys in found.items() if keys]
    if texts:
        raise CheckpointError(
            f"the tensors in {reader.directory} do not fit the {model.table.model_type} model of "
            f"config.json: {'; '.join(texts)}"
        )


def _fits(shape: tuple[int, ...], parameter: Parameter, where: Place) -> bool:
    expected = (*where.dims, *parameter.shape)
    if parameter.split is Split.VOCAB and len(shape) == len(expected):  # rows of padding follow
        return shape[0] >= expected[0] and shape[1:] == expected[1:]
    return shape == expected


def hf_tensors(reader: DistReader, model: Model) -> Iterator[NamedTensor]:
    """Yield every Hugging Face tensor of the model in the order of its layers."""
    for parameter in model.table.exported:
        where = _found(reader, model, parameter)
        streamable = parameter.transform in (Transform.COPY, Transform.STACK)
        if streamable and _nbytes(reader, model, parameter) > WHOLE_BYTES:
            yield from _streams(reader, parameter, where)
        else:
            full = reader.rows(where, 0, parameter.shape[0])
            yield from transforms.to_hf(parameter, full).items()


def _streams(
    reader: DistReader, parameter: Parameter, where: Place
) -> Iterator[tuple[str, TensorStream]]:
    """The tensors below each other in a parameter, unread."""
    begin = 0
    dtype = reader.dtype(where.key)
    step = max(1, BLOCK_BYTES // (prod(parameter.shape[1:]) * dtype.itemsize))
    for tensor in parameter.hf:
        end = begin + tensor.shape[0]

        def blocks(begin: int = begin, end: int = end) -> Iterator[Tensor]:
            for first in range(begin, end, step):
                yield reader.rows(where, first, min(first + step, end))

        yield tensor.name, TensorStream(dtype, tensor.shape, blocks)
        begin = end


def _found(reader: DistReader, model: Model, parameter: Parameter) -> Place:
    """Where the parameter is, under whichever of its names the checkpoint has it."""
    where = model.place(parameter)
    other = named_by_transformer_engine(where.key)
    return replace(where, key=other) if other in reader and where.key not in reader else where


def _total(reader: DistReader, model: Model) -> int:
    return sum(_nbytes(reader, model, parameter) for parameter in model.table.exported)


def _nbytes(reader: DistReader, model: Model, parameter: Parameter) -> int:
    return prod(parameter.shape) * reader.dtype(_found(reader, model, parameter).key).itemsize


def _bytes_held(item: NamedTensor) -> int:
    return item[1].nbytes if isinstance(item[1], Tensor) else 0
