"""What a directory is: a Hugging Face checkpoint, a Megatron one, how large, of what."""

import re
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError

from slime_convert import quantized
from slime_convert.dist.reader import MODEL_PREFIXES, OPTIMIZER_PREFIXES, DistReader, checkpoint_in
from slime_convert.families import find, read_config
from slime_convert.hf.dtypes import DTYPES
from slime_convert.hf.pickled import open_checkpoint

_ITERATION = re.compile(r"iter_0*(\d+)$")


def describe(directory: Path, *, allow_pickle: bool = False) -> list[str]:
    """Return lines for people to read, after looking for what is missing or damaged."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    if (directory / "config.json").is_file():
        return _hugging_face(directory, allow_pickle=allow_pickle)
    return _megatron(checkpoint_in(directory))


def _hugging_face(directory: Path, *, allow_pickle: bool) -> list[str]:
    config = read_config(directory)
    kept = quantized.quantization(config)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    family = find(plain)
    arguments = family.megatron_args(plain)
    table = family.parameters(plain)
    with open_checkpoint(directory, allow_pickle=allow_pickle) as reader:
        if kept.kind == "none":
            reader.check(table)
        reader.check_bytes()
        dtypes = Counter(reader.dtype(name) for name in reader.names)
        files = reader.num_files
        size = sum(map(reader.nbytes, reader.names))
    parameters = sum(prod(tensor.shape) for tensor in table.hf_tensors.values())
    facts = {
        "format": "Hugging Face",
        "family": f"{family.model_type}: {family.title}",
        "parameters": f"{parameters:,}",
        "tensors": _counted(dtypes),
        "files": f"{files:,}, complete",
        "bytes": f"{size:,}",
    }
    if kept.kind != "none":
        facts["quantized"] = f"{kept.kind}: slime-convert cast --dtype bf16 makes it trainable"
    return _table(facts, arguments)


def _megatron(directory: Path) -> list[str]:
    with DistReader(directory) as reader:
        common = reader.common()
        keys = [key for key in reader.keys if key.startswith(MODEL_PREFIXES)]
        others = [key for key in reader.keys if key.startswith(OPTIMIZER_PREFIXES)]
        dtypes = Counter(DTYPES.get(reader.dtype(key), str(reader.dtype(key))) for key in keys)
        parameters = sum(prod(reader.shape(key)) for key in keys)
        size = sum(prod(reader.shape(k)) * reader.dtype(k).itemsize for k in reader.keys)
        files = reader.num_files
    about: Mapping[str, Any] = common.get("slime", {})
    architecture = dict(about.get("architecture", {}))
    number = _ITERATION.search(directory.name)
    facts = {
        "format": "Megatron torch_dist",
        "family": str(about.get("model_type", "not said")),
        "iteration": number[1] if number else "none: converted, not trained",
        "parameters": f"{parameters:,}, padding of the vocabulary included",
        "tensors": _counted(dtypes),
        "optimizer": f"{len(others):,} tensors" if others else "none",
        "files": f"{files:,}, complete",
        "bytes": f"{size:,}",
    }
    if layout := about.get("layout"):
        facts["written for"] = ", ".join(f"{name} {size}" for name, size in layout.items())
    architecture.pop("model_type", None)
    return _table(facts, architecture)


def _table(facts: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    width = max(map(len, [*facts, *arguments])) + 2
    lines = [f"{key:{width}}{value}" for key, value in facts.items()]
    if arguments:
        lines += ["", "Megatron arguments"]
        lines += [f"{key:{width}}{value}" for key, value in arguments.items()]
    return lines


def _counted(dtypes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(dtypes.items()))
