"""A configuration while it is being resolved: values, where each came from, what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

DEFAULT = "default"
REDEFAULT = "default of slime"
MODEL = "model config"


@dataclass(slots=True)
class Values:
    """Name -> value, and name -> where it came from."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, name: str) -> Any:
        """The value as it stands."""
        return self.values[name]

    def put(self, name: str, value: Any, source: str) -> None:
        """Set a value."""
        self.values[name] = value
        self.sources[name] = source
        if source == DEFAULT:
            self.defaults[name] = value

    def given(self, name: str) -> bool:
        """Whether the user set it."""
        source = self.sources.get(name, DEFAULT)
        return not source.startswith((DEFAULT, MODEL, "derived"))


@dataclass(slots=True)
class Draft:
    """What the rules read and write. Field names are unique over slime's sections."""

    own: Values = field(default_factory=Values)
    megatron: Values = field(default_factory=Values)
    server: Values = field(default_factory=Values)
    """Only what differs from SGLang's defaults."""
    router: Values = field(default_factory=Values)
    """Only what differs from the router's defaults."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys of --custom-config-path that are no flags: the user's own."""
    meant: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of those that are nearly a flag, what to give; in brackets, behind a space."""
    problems: list[str] = field(default_factory=list[str])
    notices: list[str] = field(default_factory=list[str])

    def __getitem__(self, name: str) -> Any:
        """The value of one of slime's own fields."""
        return self.own[name]

    def given(self, *names: str) -> bool:
        """Whether the user set any of these fields."""
        return any(self.own.given(name) for name in names)

    def derive(self, name: str, value: Any, rule: str) -> None:
        """Set a field on behalf of a rule; a value that stays the same keeps its source."""
        if self.own[name] != value:
            self.own.put(name, value, f"derived: {rule}")

    def derive_megatron(self, dest: str, value: Any, rule: str) -> None:
        """Set a Megatron value on behalf of a rule."""
        if self.megatron.values.get(dest) != value:
            self.megatron.put(dest, value, f"derived: {rule}")

    def problem(self, text: str) -> None:
        """Report a mistake; the run will not start."""
        self.problems.append(text)

    def notice(self, text: str) -> None:
        """Tell the user about something that is probably not meant."""
        self.notices.append(text)

    def idle(self, names: Sequence[str], text: str) -> None:
        """Report fields that were given and do nothing; where all say the default, only tell it."""
        changed = any(self.own[name] != self.own.defaults.get(name) for name in names)
        (self.problem if changed else self.notice)(text)


@dataclass(frozen=True, slots=True)
class Facts:
    """The world outside the command line; made up freely in tests."""

    hf_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    megatron_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Architecture by Megatron destination, from the model's config.json."""
    num_gpus: int = 0
    """NVIDIA devices this process may use."""
    in_cluster: bool = False
    """Ray spans other machines, whose devices cannot be counted here."""
    host_bytes: int | None = None
    """Memory of this machine that can still be used."""
    now: datetime = datetime(2000, 1, 1)
    num_prompts: int | None = None
    """Rows of --prompt-data, counted only where --num-epoch asks for them."""
    prompt_columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """``input_key``, ``label_key`` -> the columns of --prompt-data that are read."""
    unlabelled: tuple[str, ...] = ()
    """Flag and path of every file of prompts whose first one comes without a label."""
    eval_file: Mapping[str, Any] | None = None
    """What --eval-config holds."""
    tensorboard_dir: str | None = None
    problems: tuple[str, ...] = ()


def spelled(*names: str) -> str:
    """Fields as flags, for messages: ``--use-tis, --tis-clip``."""
    return ", ".join("--" + name.replace("_", "-") for name in names)
