"""Checkpoints compared tensor by tensor, and damaged on purpose."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from slime_convert.hf import HfReader

Tensors = dict[str, torch.Tensor]


def hf_tensors(directory: Path) -> Tensors:
    """All tensors of a Hugging Face checkpoint."""
    with HfReader(directory) as reader:
        return {name: reader.get(name) for name in reader.names}


def same_bytes(a: Tensors, b: Tensors) -> bool:
    """Whether both have the same names, types, shapes and bytes; -0.0 is not 0.0."""
    return set(a) == set(b) and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and torch.equal(
            a[n].contiguous().view(-1).view(torch.uint8),
            b[n].contiguous().view(-1).view(torch.uint8),
        )
        for n in a
    )


def change(directory: Path, edit: Callable[[Tensors], None]) -> None:
    """Edit the tensors of a checkpoint of one file."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def in_shards(directory: Path, parts: int = 2) -> Path:
    """Cut the one file of a checkpoint into ``parts`` with an index; return the index."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    weight_map: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        names = sorted(tensors)[part::parts]
        save_file({name: tensors[name] for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    path.unlink()
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def to_bfloat16(directory: Path) -> Path:
    """Round all tensors of a checkpoint of one file, but for routers' corrections."""

    def cast(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if not name.endswith("e_score_correction_bias"):
                tensors[name] = tensor.bfloat16()

    change(directory, cast)
    return directory
