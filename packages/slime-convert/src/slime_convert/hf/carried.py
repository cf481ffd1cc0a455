"""Tensors that are not trained and go from one checkpoint into the next as they are."""

from collections.abc import Iterator
from pathlib import Path

from slime_convert.hf.reader import INDEX, SINGLE, HfReader
from slime_convert.hf.stream import TensorStream, streamed
from slime_convert.parameters import ParameterTable


class CarriedTensors:
    """The tensors in ``source`` that a checkpoint of the model takes over unchanged.

    Such as layers for multi-token prediction. None where ``source`` holds no weights, only
    config.json and a tokenizer.
    """

    def __init__(self, source: Path | str, table: ParameterTable) -> None:
        self._source = Path(source)
        self.names: tuple[str, ...] = ()
        if any((self._source / name).is_file() for name in (SINGLE, INDEX)):
            with HfReader(source) as reader:
                self.names = tuple(name for name in reader.names if table.carries(name))

    def __iter__(self) -> Iterator[tuple[str, TensorStream]]:
        """Yield them one by one; each can be read until the next one is asked for."""
        if self.names:
            with HfReader(self._source) as reader:
                for name in self.names:
                    yield name, streamed(reader, name)
