"""Tensors that are not trained and go from one checkpoint into the next as they are."""

from collections.abc import Iterator
from pathlib import Path

from slime_convert.hf.reader import HfReader, listed_tensors
from slime_convert.hf.stream import TensorStream, streamed
from slime_convert.parameters import ParameterTable


class CarriedTensors:
    """The tensors in ``source`` that a checkpoint of the model takes over unchanged.

    Such as layers for multi-token prediction. None where ``source`` holds no weights, only
    config.json and a tokenizer.

    Raises:
        CheckpointError: ``source`` lists such tensors, and is not whole.
    """

    def __init__(self, source: Path | str, table: ParameterTable) -> None:
        self._source = Path(source)
        listed = (table.carried and listed_tensors(self._source)) or ()
        self.names = tuple(sorted(name for name in listed if table.carries(name)))
        if self.names:
            HfReader(self._source).close()  # looks at the files now, not when they are needed

    def __iter__(self) -> Iterator[tuple[str, TensorStream]]:
        """Yield them one by one; each can be read until the next one is asked for."""
        if self.names:
            with HfReader(self._source) as reader:
                for name in self.names:
                    yield name, streamed(reader, name)
