"""Which weights are trained, whatever layout they are divided by."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from slime_core.errors import ConfigError
from torch import Tensor, nn

from slime_megatron.mcore.hf_load import global_names
from slime_megatron.mcore.tensors import unwrap


def freeze(
    chunks: Sequence[nn.Module], *, only_train: Sequence[str] = (), frozen: Sequence[str] = ()
) -> None:
    """Take the gradient from parameters by regular expressions searched in their names.

    ``only_train`` keeps just the matching ones, ``frozen`` drops the matching ones. Layers and
    experts are counted over the whole model. Collective.

    Raises:
        ConfigError: nothing is left to train on any rank.
    """
    if not only_train and not frozen:
        return
    kept, names = 0, [""]
    for chunk in chunks:
        for name, tensor in global_names(chunk):
            if isinstance(tensor, nn.Parameter):
                names.append(_shared_name(chunk, name))
                keep = not only_train or any(re.search(p, names[-1]) for p in only_train)
                keep = keep and not any(re.search(p, names[-1]) for p in frozen)
                tensor.requires_grad_(keep)
                kept += keep
    total = torch.tensor([kept], device=next(chunks[0].parameters()).device)
    torch.distributed.all_reduce(total)
    if not int(total):
        raise ConfigError(
            "--only-train-params-name-list and --freeze-params-name-list leave no parameter to "
            f"train: given {list(only_train)} and {list(frozen)}, matched against names such as "
            f"{names[-1]}"
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
