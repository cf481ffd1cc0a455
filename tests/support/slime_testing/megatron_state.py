"""A trainer rank's state for a tiny model, at any layout, in a process that has a process group."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_convert.families import find, read_config
from slime_megatron.mcore.startup import bootstrap

_SPELLING = {"layernorm_epsilon": "norm-epsilon"}
_NEGATED = {"add_bias_linear": "disable-bias-linear"}
_BASE = (
    "--micro-batch-size=1",
    "--global-batch-size=4",
    "--train-iters=100",
    "--lr=1e-2",
    "--lr-decay-style=constant",
    "--clip-grad=1.0",
    "--weight-decay=0.01",
    "--seed=7",
    "--tokenizer-type=NullTokenizer",
)


def architecture_argv(values: Mapping[str, Any]) -> list[str]:
    """Command line flags for a family's Megatron arguments."""
    argv: list[str] = []
    for dest, value in values.items():
        if dest in _NEGATED:
            argv += [] if value else [f"--{_NEGATED[dest]}"]
        elif isinstance(value, bool):
            argv += [f"--{dest.replace('_', '-')}"] if value else []
        else:
            argv.append(f"--{_SPELLING.get(dest, dest.replace('_', '-'))}={value}")
    return argv


def make_state(
    directory: Path, rank: int, world: int, *argv: str, load: bool = True, optimizer: bool = True
) -> Any:
    """Divide the ranks as ``argv`` says and build the model of ``directory`` on them.

    May be called several times in one process, each time with another layout.
    """
    bootstrap.load()
    import torch
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine
    from slime_megatron.mcore import model
    from slime_megatron.mcore.optimizer import megatron_optimizer as optimizers
    from slime_megatron.mcore.startup import arguments, initialize
    from slime_megatron.mcore.state import TrainState
    from slime_megatron.mcore.weights.hf_load import load_hf

    hf_config = read_config(directory)
    family = find(hf_config)
    flags = [*architecture_argv(family.megatron_args(hf_config)), *_BASE, *argv]
    args = arguments.parse(flags, rank, world)
    device = torch.device("cpu")
    destroy_rerun_state_machine()
    initialize.initialize(args, device=device)
    chunks = model.build(args, hf_config, family)
    if load:
        load_hf(chunks, family, hf_config, directory)
    built = optimizers.build(args, chunks) if optimizer else (None, None)
    return TrainState(
        args=args,
        chunks=chunks,
        optimizer=built[0],
        scheduler=built[1],
        family=family,
        hf_config=hf_config,
        device=device,
    )
