"""Which weights are trained, whatever layout they are divided by."""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from slime_convert.names import expert_of
from slime_core.errors import ConfigError
from torch import Tensor, nn

from slime_megatron.mcore.weights.places import global_names
from slime_megatron.mcore.weights.tensors import unwrap


def freeze(
    chunks: Sequence[nn.Module], *, only_train: Sequence[str] = (), frozen: Sequence[str] = ()
) -> None:
    """Take the gradient from parameters by regular expressions searched in their names.

    ``only_train`` keeps just the matching ones, ``frozen`` drops the matching ones. Layers and
    experts are counted over the whole model. Collective.

    Raises:
        ConfigError: nothing is left to train on any rank, or on some expert-parallel ranks none of
            their experts.
    """
    if not only_train and not frozen:
        return
    kept = kept_experts = 0
    names = [""]
    for chunk in chunks:
        for name, tensor in global_names(chunk):
            if isinstance(tensor, nn.Parameter):
                names.append(_shared_name(chunk, name))
                keep = not only_train or any(re.search(p, names[-1]) for p in only_train)
                keep = keep and not any(re.search(p, names[-1]) for p in frozen)
                tensor.requires_grad_(keep)
                kept += keep
                kept_experts += keep and expert_of(name) is not None
    total = torch.tensor([kept], device=next(chunks[0].parameters()).device)
    dist.all_reduce(total)
    if not int(total):
        raise ConfigError(
            "--only-train-params-name-list and --freeze-params-name-list leave no parameter to "
            f"train: given {list(only_train)} and {list(frozen)}, matched against names such as "
            f"{names[-1]}"
        )
    _check_experts(kept_experts)


def _check_experts(kept: int) -> None:
    """Megatron's optimizer of experts would wait for ever for the ranks that have none to train."""
    device: Any = torch.cuda.current_device()
    most_and_least = torch.tensor([kept, -kept], device=device)
    group: Any = parallel_state.get_expert_model_parallel_group()
    dist.all_reduce(most_and_least, op=dist.ReduceOp.MAX, group=group)
    most, least = most_and_least[0], -most_and_least[1]
    is_uneven = ((least == 0) & (most > 0)).int()
    dist.all_reduce(is_uneven, op=dist.ReduceOp.MAX)
    if int(is_uneven):
        raise ConfigError(
            "--only-train-params-name-list and --freeze-params-name-list leave some ranks of "
            "--expert-model-parallel-size no expert to train: train at least one on each, all of "
            "them or none, or give --expert-model-parallel-size 1"
        )


def _shared_name(chunk: nn.Module, name: str) -> str:
    """The embedding's for the last stage's copy of it, which is trained or frozen with it.

    Megatron adds up the gradients of both, and waits for ever where only one has any.
    """
    tied = getattr(unwrap(chunk), "share_embeddings_and_output_weights", False)
    return "embedding.word_embeddings.weight" if tied and name == "output_layer.weight" else name


def keep_gradients_flowing(chunks: Sequence[nn.Module]) -> None:
    """Have what a frozen embedding gives ask for a gradient, as that of a trained one does.

    Layers that are computed again when going back are one operation to autograd, which knows their
    inputs and not their weights: where no input asks for a gradient, no weight is given one.
    """
    for chunk in chunks:
        embedding: Any = getattr(unwrap(chunk), "embedding", None)
        if embedding is not None:
            embedding.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(_module: nn.Module, _given: Any, output: Tensor) -> None:
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()
