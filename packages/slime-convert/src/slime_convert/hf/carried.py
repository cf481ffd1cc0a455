"""Tensors that are not trained and go from one checkpoint into the next as they are."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from slime_convert.hf.reader import INDEX, SINGLE, HfReader
from slime_convert.parameters import ParameterTable


def carried_tensors(source: Path | str, table: ParameterTable) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in ``source`` that a checkpoint of the model takes over unchanged.

    Such as layers for multi-token prediction. None where ``source`` holds no weights, only
    config.json and a tokenizer.
    """
    if not any((Path(source) / name).is_file() for name in (SINGLE, INDEX)):
        return
    with HfReader(source) as reader:
        for name in reader.names:
            if table.carries(name):
                yield name, reader.get(name)
