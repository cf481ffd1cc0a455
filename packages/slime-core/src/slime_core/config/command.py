"""Flags about the command line itself."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandConfig:
    """More sources of configuration, and what to do with it."""

    custom_config_path: str | None = None
    """YAML file of flags without dashes; it wins over the command line. Other keys are handed to
    user functions as they are; one that is nearly a flag is an error where there are none."""
    megatron_config_path: str | None = None
    """YAML file of flags per role: ``megatron: [{role: actor | critic, overrides: {...}}]``."""
    train_backend: Literal["megatron"] = "megatron"
    """What trains."""
    dump_config: bool = flag(default=False, ours=True)
    """Print every value and where it comes from, and stop."""
    assume_gpus: int | None = flag(default=None, at_least=1, ours=True)
    """With --dump-config: resolve as on a machine that shows so many GPUs, whatever this one has,
    and with --actor-num-nodes as in a Ray cluster of such machines. Host memory is then what
    --offload-host-memory-gib says, and unbounded without it."""
