"""Layers under ``torch.compile``: pointwise work between matrix products is fused."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_layer import TransformerLayer

from slime_megatron.mcore import patches
from slime_megatron.mcore.layers.sealed import sealed

logger = logging.getLogger(__name__)


def why_not(args: Any, device: torch.device) -> str | None:
    """What keeps layers from being compiled; None where nothing does."""
    if device.type != "cuda":
        return "on a CPU compiling takes longer than it saves"
    parts = set(args.recompute_modules or ()) - {"core_attn"}
    if args.recompute_granularity == "selective" and parts:
        return f"--recompute-modules {' '.join(sorted(parts))} cuts layers into pieces"
    return None


def compile_layers(chunks: Sequence[torch.nn.Module], backend: str = "inductor") -> int:
    """Compile every layer in place; how many there are.

    All layers of one kind share their compiled functions, made in the first passes: with gradient
    and without, and again when the number of tokens first changes. Attention itself is left out of
    it, and so are linear layers that talk to other ranks, and experts. Parameters keep their names.

    Raises, in the first pass, ``RuntimeError`` for layers that talk to other ranks elsewhere
    (``sealed``).
    """
    patches.gather_keys_outside_of_compiled_code()
    count = 0
    for chunk in chunks:
        for layer in chunk.modules():
            if isinstance(layer, TransformerLayer) and isinstance(layer.mlp, MLP | MoELayer):
                _leave_out_attention(layer.self_attention)
                _leave_out_talking(layer)
                _leave_out_experts(layer.mlp)
                _compile(layer, backend)
                count += 1
    logger.info("%d layers are compiled", count)
    return count


def _compile(layer: Any, backend: str) -> None:
    """Its ``forward``, not the call of it, which would take the layer's hooks along."""
    layer.forward = torch.compile(layer.forward, backend=sealed(backend))


def _leave_out_talking(layer: torch.nn.Module) -> None:
    """Linear layers that talk to other ranks run as they are."""
    for module in layer.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear) and _talks(module):
            linear: Any = module
            linear.forward = torch.compiler.disable(linear.forward)


def _talks(linear: Any) -> bool:
    return linear.tp_group.size() > 1


def _leave_out_experts(mlp: Any) -> None:
    """Their products are grouped, and what is between them has kernels of its own."""
    if isinstance(mlp, MoELayer):
        whole: Any = mlp
        whole.forward = torch.compiler.disable(mlp.forward)


def _leave_out_attention(attention: Any) -> None:
    """Its shapes follow the lengths of sequences, which differ in every microbatch.

    Megatron calls it inside a context manager, which no compiled region can end in; the call it
    makes to have attention recomputed is not, and takes its place.
    """
    core = attention.core_attention
    core.forward = torch.compiler.disable(core.forward)
    if attention.checkpoint_core_attention:
        call = attention._checkpointed_attention_forward
    else:
        call = attention._run_core_attention
        attention.checkpoint_core_attention = True
    attention._checkpointed_attention_forward = torch.compiler.disable(call)
