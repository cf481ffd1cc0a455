"""Weights that are still on their way when a pass begins (``--overlap-param-gather``).

Megatron waits for a module's weights when the module is called. Here some are read without a call
(grouped experts, the product behind a gate, the output layer), and a hook in every module would,
traced, tie a compiled function to one layer's parameters. So every layer waits for all of its
weights at once, and whoever reads those of a module that is not called waits for them.
"""

from collections.abc import Sequence
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn


def gather_by_layer(chunks: Sequence[nn.Module]) -> None:
    """Have every layer wait once, where Megatron waits in each of its modules."""
    for chunk in chunks:
        if _overlaps(chunk):
            for module in chunk.modules():
                if isinstance(module, TransformerLayer):
                    _gather_before(module, chunk)


def _overlaps(chunk: nn.Module) -> bool:
    return bool(getattr(chunk, "remove_forward_pre_hook_handles", None))


def _gather_before(layer: nn.Module, wrapper: Any) -> None:
    handles, wait = wrapper.remove_forward_pre_hook_handles, wrapper._make_forward_pre_hook()
    for module in layer.modules():
        handles[module].remove()
    holders = _one_of_each_group(layer, wrapper)

    def hook(*_: Any) -> None:
        for module in holders:
            wait(module)

    handles[layer] = layer.register_forward_pre_hook(hook)


def _one_of_each_group(layer: nn.Module, wrapper: Any) -> list[nn.Module]:
    """Of weights that travel together one module that has some, in the order in which they do."""
    holders: dict[int, nn.Module] = {}
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(wrapper.param_to_bucket_group.get(parameter)), module)
    kinds = (wrapper.bucket_groups, wrapper.expert_parallel_bucket_groups)
    order = [id(group) for groups in kinds for group in reversed(groups)]
    return [holders[group] for group in order if group in holders]


def wait_for_weights(module: nn.Module) -> None:
    """Return when ``module``, which nobody calls, has its weights: run what waits for a call."""
    uncalled: Any = module
    for hook in uncalled._forward_pre_hooks.values():
        hook(module, ())


def check_gathered(chunk: nn.Module) -> None:
    """Raise ``RuntimeError`` naming weights that no call in a pass through ``chunk`` waited for.

    The pass may have read those of the step before.
    """
    if not _overlaps(chunk):
        return
    wrapper: Any = chunk
    for group in (*wrapper.bucket_groups, *wrapper.expert_parallel_bucket_groups):
        if not group.param_gather_dispatched or group.param_gather_handle is not None:
            late = {id(parameter) for bucket in group.buckets for parameter in bucket.params}
            name = next(name for name, p in chunk.named_parameters() if id(p) in late)
            raise RuntimeError(
                f"weights that no call of a module waited for: {name} and what travels with it. "
                "Call the module that holds them, or leave --overlap-param-gather out"
            )
