"""Weight gradients of linear layers, added to Megatron's sums inside the matrix product.

Megatron adds every weight's gradient, first written out in 16 bits, to a float32 sum over
microbatches. Here the product that computes the gradient adds to the sum itself (``beta = 1``):
less memory traffic, and nothing is rounded on the way. Megatron's own switch for that,
``--gradient-accumulation-fusion``, needs a CUDA extension of apex.

A linear layer without tensor parallelism becomes ``FusedLinear``, and the second of a gated layer
``GatedProduct``; one with it keeps Megatron's function and is handed the product in the extension's
place.
"""

from collections.abc import Iterator, Sequence
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn import functional

from slime_megatron.mcore.products.mlp_gate import gate
from slime_megatron.mcore.products.summed_products import FusedLinear, GatedProduct, add_product

_SUM = "gradient_sum"
"""A weight's attribute: ``main_grad`` under a version counter of its own.

Autograd saves it for the backward pass, in which other views of the same buffer are written."""


def fuse_weight_gradients(chunks: Sequence[torch.nn.Module]) -> int:
    """Let the linear layers inside the blocks of ``chunks`` add to their sums; how many do.

    Comes after the chunks were wrapped in ``DistributedDataParallel``, which makes the sums.
    """
    stand_in: Any = layers
    stand_in.fused_weight_gradient_mlp_cuda = SimpleNamespace(
        wgrad_gemm_accum_fp32=_accumulate, wgrad_gemm_accum_fp16=_accumulate
    )
    fused = 0
    for module in _linears(chunks):
        weight: Any = module.weight
        setattr(weight, _SUM, weight.main_grad.data)
        if module.tp_group.size() == 1 and not getattr(module, "explicit_expert_comm", False):
            module._forward_impl = _fused_linear
        else:
            module.gradient_accumulation_fusion = True
        fused += 1
    for module in _blocks(chunks):
        if type(module) is MLP and _is_plain_gate(module):
            setattr(module, "forward", MethodType(_gated_layer, module))  # noqa: B010
    return fused


def mark_added_elsewhere(chunks: Sequence[torch.nn.Module]) -> None:
    """Say of every weight whose gradient is added up elsewhere that Megatron must not add it.

    Before every step, whose beginning makes Megatron forget it.
    """
    for module in _linears(chunks):
        weight: Any = module.weight
        if hasattr(weight, _SUM):
            weight.grad_added_to_main_grad = True


def _is_plain_gate(mlp: Any) -> bool:
    config, second = mlp.config, mlp.linear_fc2
    return (
        config.gated_linear_unit
        and config.activation_func is functional.silu
        and config.activation_func_clamp_value is None
        and not (config.glu_linear_offset or config.add_bias_linear)
        and second.tp_group.size() == 1
        and hasattr(second.weight, _SUM)
        and not second.is_expert
    )


def _gated_layer(mlp: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """In the place of Megatron's ``MLP.forward``, where there is no bias."""
    given, _bias = mlp.linear_fc1(hidden_states)
    weight = mlp.linear_fc2.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        return GatedProduct.apply(given, weight, weight.gradient_sum), None  # type: ignore[return-value]
    return torch.matmul(gate(given), weight.t()), None


def _fused_linear(
    input: Tensor,
    weight: Any,
    *_: Any,
    bias: Tensor | None = None,
    **__: Any,
) -> Tensor:
    """In the place of Megatron's function."""
    if torch.is_grad_enabled() and weight.requires_grad:
        out = FusedLinear.apply(input, weight, weight.gradient_sum)
    else:
        out = torch.matmul(input, weight.t())
    return out if bias is None else out + bias  # type: ignore[operator, return-value]


def _accumulate(given: Tensor, grad: Tensor, total: Tensor) -> None:
    """Megatron's extension: rows of inputs, rows of gradients, sum."""
    add_product(total.data, grad.t(), given)


def _linears(chunks: Sequence[torch.nn.Module]) -> Iterator[Any]:
    for module in _blocks(chunks):
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            weight: Any = module.weight
            if weight.requires_grad and hasattr(weight, "main_grad"):
                yield module


def _blocks(chunks: Sequence[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """Every module inside a layer."""
    for chunk in chunks:
        for block in chunk.modules():
            if isinstance(block, TransformerLayer):
                yield from block.modules()
