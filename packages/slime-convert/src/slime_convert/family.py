"""A model family: which parameters its models have and what Megatron must be told to build them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_convert.parameters import ParameterTable, expand
from slime_convert.rules import HfConfig, Parameter, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Everything slime knows about the models with one ``model_type``.

    A family is declared once, in a module of ``slime_convert.families``, and is the only place
    that knows its names. Its functions raise ``CheckpointError`` for a config.json they cannot
    honour: a model is either built exactly or refused.
    """

    model_type: str
    title: str
    """Which published models these are, in a few words."""
    rules: tuple[Rule, ...]
    arguments: Callable[[HfConfig], dict[str, Any]]
    """config.json -> Megatron argument destinations and values."""
    dims: Callable[[HfConfig], dict[str, int]]
    """config.json -> sizes of the dimensions that the rules name."""
    counts: Callable[[HfConfig], dict[str, int]]
    """config.json -> how many values each placeholder of the rules takes (layers, experts)."""
    ignored: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of tensors that checkpoints may contain and no parameter needs; the
    ``counts`` may be named: ``model.layers.{i}.*`` is the first layer after the decoder's last."""
    carried: tuple[str, ...] = ()
    """Patterns like those of ``ignored``, of tensors that are not trained and are copied unchanged
    from the checkpoint a model started as into those written of it."""
    optional: tuple[str, ...] = ()
    """Tensors that checkpoints may lack: their parameters keep what they start as."""
    post_norms: bool = False
    """Whether attention and MLP normalise what they give before it is added."""

    def megatron_args(self, hf_config: HfConfig) -> dict[str, Any]:
        """Return Megatron's architecture arguments, by destination, for this config.json.

        Only what defines the network; nothing about batch sizes, precision or parallelism.
        """
        return self.arguments(hf_config)

    def parameters(self, hf_config: HfConfig) -> ParameterTable:
        """Return every parameter of the model that this config.json describes."""
        self.megatron_args(hf_config)  # refuses what cannot be built
        sizes: Mapping[str, int] = self.dims(hf_config)
        counts = self.counts(hf_config)
        parameters = tuple(expand(self.rules, hf_config, sizes=sizes, counts=counts))
        ignored, carried = (
            tuple(pattern.format_map(counts) for pattern in patterns)
            for patterns in (self.ignored, self.carried)
        )
        return ParameterTable(
            self.model_type,
            parameters,
            ignored,
            self.optional,
            carried=carried,
            repeated=self._repeated(parameters),
        )

    def _repeated(self, parameters: Sequence[Parameter]) -> dict[str, str]:
        """The output layer's own name for the tensor that an alias has from another rule."""
        aliased = {p.name: p.hf[0].name for p in parameters if p.alias}
        own = {rule.megatron: rule.hf[0].name for rule in self.rules if not rule.alias}
        return {own[name]: other for name, other in aliased.items()}
