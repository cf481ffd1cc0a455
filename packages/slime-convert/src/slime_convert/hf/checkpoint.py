"""The tensors of a checkpoint directory, whichever kind of files they are in."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.hf.dtypes import TORCH_DTYPES
from slime_convert.parameters import ParameterTable
from slime_convert.safetensors_header import Entry
from slime_convert.streaming.finite import all_finite

_SHOWN = 5
_ROWS = 1 << 12
"""Of two tensors that are compared, in memory at a time."""


class Checkpoint(ABC):
    """An open checkpoint directory; a context manager, used by one process.

    What its tensors are is known, none of them is read before it is asked for.
    """

    def __init__(
        self,
        directory: Path,
        file_of: Mapping[str, Path],
        entries: Mapping[str, Entry],
        *,
        check_finite: bool,
    ) -> None:
        self.directory = directory
        self._file_of = file_of
        self._entries = entries
        self._check_finite = check_finite

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close all files; tensors already handed out stay valid."""

    @abstractmethod
    def get(self, name: str, *index: slice) -> Tensor:
        """Return a tensor, or the slice of it: ``get(name, slice(0, 8))`` reads 8 rows."""

    @abstractmethod
    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Return rows of a tensor in memory of its own, none of it mapped from the file.

        For reading much of a large checkpoint: what is mapped counts as memory in use until the
        file is closed. A tensor without dimensions is one row.
        """

    @abstractmethod
    def check_bytes(self) -> None:
        """Raise ``CheckpointError`` unless the files hold what is said of them elsewhere."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return the type of a tensor as safetensors files spell it, such as "BF16"."""
        return self._entry(name).dtype

    def torch_dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor as PyTorch calls it, or refuse one that is not known."""
        dtype = TORCH_DTYPES.get(self.dtype(name))
        if dtype is None:
            raise CheckpointError(
                f"`{name}` in {self._file_of[name]} is {self.dtype(name)}: tensors of this type "
                "are not read"
            )
        return dtype

    def nbytes(self, name: str) -> int:
        """Return how many bytes a tensor takes."""
        entry = self._entry(name)
        return entry.end - entry.begin

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the tensors are in."""
        return tuple(sorted(set(self._file_of.values())))

    @property
    def num_files(self) -> int:
        """How many files the tensors are in."""
        return len(self.files)

    def check(self, table: ParameterTable) -> None:
        """Raise one ``CheckpointError`` for all tensors that are missing, misshapen or unknown.

        A tied output layer that the files hold as well must be the embedding: its values are read.
        """
        expected = table.hf_tensors
        missing = [
            name for name in expected if name not in self._entries and name not in table.optional
        ]
        misshapen = [
            f"{name} {list(self.shape(name))} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in self._entries and self.shape(name) != tensor.shape
        ]
        unknown = [
            name for name in self._entries if name not in expected and not table.ignores(name)
        ]
        problems = [
            f"{what}: {some(items)}"
            for what, items in (
                ("missing", missing),
                ("of another shape", misshapen),
                ("unknown to the model", unknown),
            )
            if items
        ]
        if problems:
            raise CheckpointError(
                f"the tensors in {self.directory} do not fit the {table.model_type} model of its "
                f"config.json: {'; '.join(problems)}"
            )
        for name, other in table.repeated.items():
            if name in self._entries and not self._same(name, other):
                raise CheckpointError(
                    f"{self.directory} holds a `{name}` that is not `{other}`, although its "
                    "config.json says tie_word_embeddings = true: transformers 5 computes with "
                    "the one, engines with the other. Say false there if it is the output layer, "
                    "or save the model without it"
                )

    def _same(self, name: str, other: str) -> bool:
        """Whether two tensors agree in type, shape and every byte."""
        if (self.shape(name), self.dtype(name)) != (self.shape(other), self.dtype(other)):
            return False
        rows = self.shape(name)[0]
        return all(
            bytes_equal(*(self.rows(x, begin, min(begin + _ROWS, rows)) for x in (name, other)))
            for begin in range(0, rows, _ROWS)
        )

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.directory} holds no tensor `{name}`")
        return self._entries[name]

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if self._check_finite and not all_finite(tensor):
            raise CheckpointError(
                f"`{name}` in {self._file_of[name]} holds values that are NaN or infinite"
            )
        return tensor


def bytes_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors agree in type, shape and every byte: -0 is not 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = (x.contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(*flat)


def some(items: Iterable[str]) -> str:
    """Return the first few items as text, and how many there are beyond."""
    texts = list(items)
    rest = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
