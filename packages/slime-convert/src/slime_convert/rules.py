"""The vocabulary in which a model family is declared: one ``Rule`` per kind of parameter.

A rule is a row of a table. It names a Megatron parameter, the Hugging Face tensors it is made of,
how they are put together (``Transform``) and how tensor parallelism cuts the result (``Split``).
Names are templates: ``{i}`` is the layer, ``{e}`` the expert, both counted over the whole model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

type HfConfig = Mapping[str, Any]
"""The values of a config.json."""

type Index = Mapping[str, int]
"""The values of a name's placeholders, such as ``{"i": 3, "e": 17}``."""

type Condition = Callable[[HfConfig, Index], bool]


class Transform(StrEnum):
    """How Hugging Face tensors become one full Megatron tensor; each has an inverse."""

    COPY = "copy"
    """One tensor, unchanged."""
    STACK = "stack"
    """Tensors below each other: [gate; up]."""
    QKV = "qkv"
    """Query, key and value interleaved by query group: [q_0; k_0; v_0; q_1; k_1; v_1; ...]."""


class Split(StrEnum):
    """What one tensor-parallel rank holds of a full Megatron tensor."""

    REPLICATED = "replicated"
    """All of it."""
    COLUMN = "column"
    """Consecutive rows (the output features of a ColumnParallelLinear)."""
    ROW = "row"
    """Consecutive columns (the input features of a RowParallelLinear)."""
    GATED = "gated"
    """Consecutive rows of the upper half, then the same rows of the lower half."""
    VOCAB = "vocab"
    """Consecutive rows, after padding with zero rows to what the ranks divide evenly."""


def always(_config: HfConfig, _index: Index) -> bool:
    """Hold for every model and every layer."""
    return True


def never(_config: HfConfig, _index: Index) -> bool:
    """Hold for no model."""
    return False


@dataclass(frozen=True, slots=True)
class HfPattern:
    """A Hugging Face tensor of a rule: a name template and the names of its dimensions."""

    name: str
    dims: tuple[str, ...]


def hf(name: str, *dims: str) -> HfPattern:
    """Return the pattern of one Hugging Face tensor: ``hf("model.norm.weight", "hidden")``."""
    return HfPattern(name, dims)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a family's table."""

    megatron: str
    hf: tuple[HfPattern, ...]
    transform: Transform = Transform.COPY
    split: Split = Split.REPLICATED
    when: Condition = always
    """For which models, layers and experts the parameter exists."""
    alias: bool = False
    """Whether the Hugging Face tensors belong to another rule: they are read for this parameter
    too and never written from it (tied output layers)."""
    with_next: bool = False
    """Whether engines need the tensors of this rule and of the next in one update, because they
    join them while loading."""

    def __post_init__(self) -> None:
        assert len(self.hf) == 1 or self.transform is not Transform.COPY, self.megatron


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A Hugging Face tensor a given model must have."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one model: a rule with its indices and dimensions filled in.

    Pure data; pickles. ``transforms`` and ``shards`` act on it.
    """

    name: str
    """The Megatron name, with layer and expert counted over the whole model."""
    hf: tuple[HfTensor, ...]
    transform: Transform
    split: Split
    num_query_groups: int
    alias: bool
    expert: bool
    """Whether it belongs to one routed expert: cut over the expert-tensor-parallel ranks."""
    with_next: bool = False
    """Whether it is published together with the next one; see ``Rule``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the full Megatron tensor without vocabulary padding."""
        rows = sum(tensor.shape[0] for tensor in self.hf)
        return (rows, *self.hf[0].shape[1:])
