"""Whether a Megatron checkpoint holds exactly the weights of a Hugging Face checkpoint."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.dist.model import Model
from slime_convert.dist.reader import DistReader
from slime_convert.dist.to_hf import check, hf_tensors
from slime_convert.hf.checkpoint import Checkpoint, bytes_equal
from slime_convert.hf.dtypes import DTYPES
from slime_convert.hf.stream import TensorStream
from slime_convert.rules import Parameter, Split
from slime_convert.streaming.progress import Progress, quiet

_SHOWN = 5


@dataclass(slots=True)
class Findings:
    """What was compared, and what differs."""

    tensors: int = 0
    num_bytes: int = 0
    dtypes: Counter[str] = field(default_factory=Counter[str])
    notes: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return a report of a few lines."""
        types = ", ".join(f"{count:,} {name}" for name, count in sorted(self.dtypes.items()))
        return [
            f"tensors   {self.tensors:,} ({types}), {self.num_bytes:,} bytes, all equal",
            *(f"note      {note}" for note in self.notes),
        ]


def verify(reader: Checkpoint, checkpoint: Path, *, progress: Progress = quiet) -> Findings:
    """Compare every tensor, as it would be written by ``dist_to_hf``, byte by byte.

    Raises:
        CheckpointError: one for all tensors that differ in name, shape, type or value.
    """
    model = Model.of(reader.directory)
    reader.check(model.table)
    reader.check_bytes()
    found = Findings()
    with DistReader(checkpoint) as dist:
        check(dist, model)
        for name, tensor in hf_tensors(dist, model):
            dtype = DTYPES[tensor.dtype]
            if reader.dtype(name) != dtype:
                found.problems.append(f"{name} {dtype} instead of {reader.dtype(name)}")
            elif not _same_values(reader, name, tensor):
                found.problems.append(f"{name} in its values")
            found.tensors += 1
            found.num_bytes += tensor.nbytes
            found.dtypes[dtype] += 1
            progress(tensor.nbytes)
        for parameter in model.table.exported:
            if parameter.split is Split.VOCAB:
                found.notes += _padding(dist, model, parameter)
    found.notes += _left_out(reader, model)
    if found.problems:
        more = len(found.problems) - _SHOWN
        raise CheckpointError(
            f"{checkpoint} and {reader.directory} differ in {len(found.problems)} of "
            f"{found.tensors} tensors: {'; '.join(found.problems[:_SHOWN])}"
            + (f" and {more} more" if more > 0 else "")
        )
    return found


def _same_values(reader: Checkpoint, name: str, tensor: Tensor | TensorStream) -> bool:
    begin = 0
    for block in (tensor,) if isinstance(tensor, Tensor) else tensor.blocks():
        end = begin + (len(block) if block.ndim else 1)
        if not bytes_equal(block, reader.rows(name, begin, end)):
            return False
        begin = end
    return True


def _padding(dist: DistReader, model: Model, parameter: Parameter) -> list[str]:
    """How many rows the vocabulary is padded with, and that they are zero."""
    where = model.place(parameter)
    rows, stored = parameter.shape[0], dist.shape(where.key)[0]
    if stored == rows:
        return []
    zero = not dist.rows(where, rows, stored).any()
    values = "zeros" if zero else "values that are not used"
    return [f"{where.key} has {stored - rows} rows beyond the vocabulary of {rows}: {values}"]


def _left_out(reader: Checkpoint, model: Model) -> list[str]:
    """Tensors of the Hugging Face checkpoint that no parameter is made of."""
    expected = model.table.hf_tensors
    others = [name for name in reader.names if name not in expected]
    notes: list[str] = []
    if model.config.get("tie_word_embeddings"):
        notes.append("the output layer is the embedding (tie_word_embeddings)")
        if "lm_head.weight" in others:
            others.remove("lm_head.weight")  # which is the embedding, or check had refused it
    for name in others[:_SHOWN]:
        kept = (
            "taken over from the Hugging Face directory" if model.table.carries(name) else "unused"
        )
        notes.append(f"{name} is not trained: {kept}")
    if len(others) > _SHOWN:
        notes.append(f"and {len(others) - _SHOWN} more such tensors")
    return notes
