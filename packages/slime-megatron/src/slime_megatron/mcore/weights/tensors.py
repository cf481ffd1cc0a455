"""Every weight a rank holds, by name, whatever its chunks are wrapped in."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def unwrap(chunk: nn.Module) -> Any:
    """The model inside DistributedDataParallel and Float16Module."""
    while isinstance(chunk.__dict__.get("_modules", {}).get("module"), nn.Module):
        chunk = chunk.get_submodule("module")
    return chunk


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that belong to a checkpoint, each once, by their local names."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:  # pyright: ignore[reportPrivateUsage]
                yield name, buffer


def settle(chunks: Sequence[nn.Module]) -> None:
    """Wait until every rank holds the parameters that the last step wrote.

    With ``--overlap-param-gather`` the distributed optimizer's all-gather runs during the next
    forward pass; whoever reads parameters before that pass must finish it first.
    """
    for chunk in chunks:
        config: Any = getattr(chunk, "ddp_config", None)
        if getattr(config, "overlap_param_gather", False):
            wrapper: Any = chunk
            with torch.no_grad():
                wrapper.start_param_sync(force_sync=True)
