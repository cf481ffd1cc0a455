"""What a config.json describes, and where a Megatron checkpoint keeps its parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_convert.dist.places import Place, place
from slime_convert.families import Family, find, read_config
from slime_convert.parameters import ParameterTable
from slime_convert.rules import HfConfig, Parameter


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its config.json; no tensor of it."""

    family: Family
    config: HfConfig
    arguments: dict[str, Any]
    """Megatron's, by destination."""
    table: ParameterTable

    @classmethod
    def of(cls, directory: Path) -> "Model":
        """Return the model of ``directory``/config.json."""
        config = read_config(directory)
        family = find(config)
        return cls(family, config, family.megatron_args(config), family.parameters(config))

    def place(self, parameter: Parameter) -> Place:
        """Return where a Megatron checkpoint keeps a parameter."""
        return place(parameter, self.arguments)
