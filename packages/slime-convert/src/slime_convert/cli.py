"""The ``slime-convert`` command: which models can be trained, and whether a checkpoint is whole."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from slime_core.errors import CheckpointError

from slime_convert.families import FAMILIES, find, read_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 1 for a checkpoint that is not in order."""
    given = _parser().parse_args(arguments)
    try:
        lines = inspect(given.directory) if given.command == "inspect" else list_families()
    except CheckpointError as error:
        sys.stderr.write(f"slime-convert: {error}\n")
        return 1
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


def list_families() -> list[str]:
    """Return one line per family: its ``model_type`` and what it is."""
    return [f"{name:12} {FAMILIES[name].title}" for name in sorted(FAMILIES)]


def inspect(directory: Path) -> list[str]:
    """Return what a checkpoint holds, after comparing all its tensors with its config.json."""
    from slime_convert.hf import HfReader  # imports torch

    config = read_config(directory)
    family = find(config)
    arguments = family.megatron_args(config)
    table = family.parameters(config)
    with HfReader(directory) as reader:
        reader.check(table)
        dtypes = Counter(reader.dtype(name) for name in reader.names)
        files = reader.num_files
    parameters = sum(prod(tensor.shape) for tensor in table.hf_tensors.values())
    facts = {
        "family": f"{family.model_type}: {family.title}",
        "parameters": f"{parameters:,}",
        "tensors": ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(dtypes.items())),
        "files": f"{files:,}, complete",
    }
    width = max(map(len, [*facts, *arguments])) + 2
    return [
        *(f"{key:{width}}{value}" for key, value in facts.items()),
        "",
        "Megatron arguments",
        *(f"{key:{width}}{value}" for key, value in arguments.items()),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-convert", description="Hugging Face and Megatron checkpoints."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the model families that can be trained")
    one = commands.add_parser("inspect", help="check a Hugging Face checkpoint and describe it")
    one.add_argument("directory", type=Path, help="the directory with config.json")
    return parser
