"""The rules of a family written out for one model: every parameter, found by its Megatron name."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from string import Formatter

from slime_core.errors import CheckpointError

from slime_convert.rules import HfConfig, HfTensor, Index, Parameter, Rule


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """Every parameter of one model, in the order of its layers."""

    model_type: str
    parameters: tuple[Parameter, ...]
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Hugging Face tensors that a checkpoint may lack: their parameters keep what they start as."""
    carried: tuple[str, ...] = ()
    """Patterns of tensors that no parameter needs and written checkpoints take over unchanged."""
    repeated: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tensors that a checkpoint may hold if they are those they stand for: a tied output layer."""
    _by_name: dict[str, Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {parameter.name: parameter for parameter in self.parameters}
        assert len(by_name) == len(self.parameters), "two rules name one Megatron parameter"
        object.__setattr__(self, "_by_name", by_name)

    def find(self, name: str) -> Parameter:
        """Return the parameter with this Megatron name (layers and experts counted globally)."""
        if name in self._by_name:
            return self._by_name[name]
        near = difflib.get_close_matches(name, self._by_name, n=1)
        hint = f"; the nearest is `{near[0]}`" if near else ""
        raise CheckpointError(
            f"`{name}` is no parameter of this {self.model_type} model by its config.json{hint}"
        )

    @property
    def exported(self) -> tuple[Parameter, ...]:
        """The parameters that a Hugging Face checkpoint is written from: all but aliases."""
        return tuple(parameter for parameter in self.parameters if not parameter.alias)

    @property
    def hf_tensors(self) -> dict[str, HfTensor]:
        """Name -> tensor that a Hugging Face checkpoint of the model must have."""
        return {tensor.name: tensor for parameter in self.exported for tensor in parameter.hf}

    def ignores(self, hf_name: str) -> bool:
        """Return whether a checkpoint may contain this tensor although no parameter needs it."""
        patterns = (*self.ignored, *self.carried)
        return any(fnmatchcase(hf_name, pattern) for pattern in patterns)

    def carries(self, hf_name: str) -> bool:
        """Return whether written checkpoints take this tensor over from the one started from."""
        return any(fnmatchcase(hf_name, pattern) for pattern in self.carried)


def expand(
    rules: Sequence[Rule], config: HfConfig, *, sizes: Mapping[str, int], counts: Mapping[str, int]
) -> Iterator[Parameter]:
    """Yield the parameter of every rule and index; all of layer 0 before any of layer 1."""
    for layered, run in itertools.groupby(rules, key=lambda rule: "i" in placeholders(rule)):
        block = tuple(run)
        for layer in range(counts["i"]) if layered else (None,):
            for rule in block:
                yield from _expand_rule(rule, config, layer=layer, sizes=sizes, counts=counts)


def placeholders(rule: Rule) -> tuple[str, ...]:
    """Return the placeholders of a rule's Megatron name, in order of appearance."""
    return tuple(name for _, name, _, _ in Formatter().parse(rule.megatron) if name)


def _expand_rule(
    rule: Rule,
    config: HfConfig,
    *,
    layer: int | None,
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
) -> Iterator[Parameter]:
    inner = [name for name in placeholders(rule) if name != "i"]
    fixed = {} if layer is None else {"i": layer}
    for values in itertools.product(*(range(counts[name]) for name in inner)):
        index = fixed | dict(zip(inner, values, strict=True))
        if rule.when(config, index):
            yield _fill(rule, index, sizes)


def _fill(rule: Rule, index: Index, sizes: Mapping[str, int]) -> Parameter:
    return Parameter(
        name=rule.megatron.format_map(index),
        hf=tuple(
            HfTensor(pattern.name.format_map(index), tuple(sizes[dim] for dim in pattern.dims))
            for pattern in rule.hf
        ),
        transform=rule.transform,
        split=rule.split,
        num_query_groups=sizes["groups"],
        alias=rule.alias,
        expert="e" in index,
        with_next=rule.with_next,
    )
