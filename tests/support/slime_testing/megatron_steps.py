"""Optimizer steps on made-up gradients, the same whatever the layout; no forward pass."""

import zlib
from typing import Any

import torch


def gradient_step(state: Any, step: int) -> float:
    """Take one step and return the gradient norm.

    The gradient is noise that depends on the parameter's name and ``step``, plus a tenth of the
    parameter, so that a wrong weight is seen in the norm.
    """
    from slime_convert.shards import shard
    from slime_megatron.mcore.weights.places import located, tensor_ranks

    table = state.family.parameters(state.hf_config)
    for chunk in state.chunks:
        for parameter, tensor in located(chunk, table):
            if not isinstance(tensor, torch.nn.Parameter):  # a buffer: no optimizer moves it
                continue
            place = tensor_ranks(parameter)
            generator = torch.Generator().manual_seed(
                zlib.crc32(parameter.hf[0].name.encode()) + step
            )
            noise = torch.randn(parameter.shape, generator=generator)
            rows = tensor.shape[0] * place.size
            part = shard(parameter, noise, place.rank, place.size, padded_vocab=rows)
            tensor.main_grad.copy_(part + 0.1 * tensor.detach().float())
    _, norm, _ = state.optimizer.step()
    state.scheduler.step(increment=state.args.global_batch_size)
    return float(norm)


def whole_model(state: Any) -> dict[str, torch.Tensor]:
    """Every Hugging Face tensor, on every rank."""
    from slime_megatron.mcore.weights.export import export_buckets

    buckets = export_buckets(state, bucket_bytes=1 << 20, everywhere=True)
    return {name: tensor.clone() for bucket in buckets for name, tensor in bucket}
