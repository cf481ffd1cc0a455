"""A loss of the user's, over logits, adapted from upstream's signature.

    f(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)

``batch`` is a dictionary of upstream's names: lists with one entry per sample of the microbatch.
Vectors hold the response tokens this rank scores, which are all of them without context
parallelism. ``logits`` is float32 [1, rows, vocabulary / tp], over the sampling temperature;
``log_probs_and_entropy`` reads it. ``sum_of_sample_mean`` adds up a vector over the batch's tokens
end to end as --loss-aggregation says; what it returns is divided by the rollouts (or samples, or
tokens) of the whole step, and so are the loss and the metrics.
"""

import functools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from slime_core.batch import LocalTokens
from slime_core.errors import PluginError
from slime_core.losses.aggregate import LossOutput, weighted_sum
from slime_core.plugins.functions import bind, load_hook
from slime_core.plugins.keyed import Keyed
from torch import Tensor

CustomLoss = Callable[[Mapping[str, Any], Tensor, LocalTokens], LossOutput]
"""(batch, logits, tokens) -> sums over the tokens this rank scores."""


def custom_loss(spec: str, flat: Mapping[str, Any]) -> CustomLoss:
    """Load the function; a microbatch without samples gives 0 without asking it."""
    call = bind(load_hook("custom_loss_function_path", spec), flat)

    def run(batch: Mapping[str, Any], logits: Tensor, tokens: LocalTokens) -> LossOutput:
        if not tokens.num_samples:
            nothing = logits.sum() * 0
            return LossOutput(nothing, {"loss": nothing.detach()})
        found = call(Keyed("batch", batch), logits, functools.partial(weighted_sum, tokens=tokens))
        if not isinstance(found, tuple) or len(found) != 2:
            raise PluginError(
                f"plugin {spec!r} must return (loss, metrics), returned {reprlib.repr(found)}"
            )
        loss, metrics = found
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise PluginError(
                f"plugin {spec!r}: its loss must be one number that depends on the logits, "
                f"is {_shown(loss)}"
            )
        loss = loss.reshape(())
        return LossOutput(loss, {"loss": loss.detach(), **_reports(spec, metrics, loss)})

    return run


def _reports(spec: str, metrics: Any, loss: Tensor) -> dict[str, Tensor]:
    if not isinstance(metrics, Mapping):
        raise PluginError(
            f"plugin {spec!r}: its metrics must be a dictionary of numbers, are {metrics!r}"
        )
    found: dict[str, Tensor] = {}
    for name, value in metrics.items():
        try:
            found[name] = torch.as_tensor(value).detach().to(loss).reshape(())
        except (TypeError, ValueError, RuntimeError) as error:
            raise PluginError(
                f"plugin {spec!r}: its metric {name!r} is not one number: {value!r}"
            ) from error
    return found


def _shown(loss: Any) -> str:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        return f"a tensor of shape {list(loss.shape)}: sum or average it"
    if isinstance(loss, Tensor):
        return f"{loss!r}, through which no gradient flows"
    return f"{loss!r}, of type {type(loss).__name__}"


def log_probs_and_entropy(
    batch: Mapping[str, Any], logits: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies of the response tokens, one vector per sample.

    They carry gradient; for use inside a custom loss, at any tensor-parallel size.
    """
    from slime_megatron.mcore.logprobs import full_logits

    picked = logits[0].index_select(0, batch["rows"])
    log_probs, entropy = full_logits.log_probs_and_entropy(picked, batch["targets"])
    lengths = [mask.numel() for mask in batch["loss_masks"]]
    return list(log_probs.split(lengths)), list(entropy.split(lengths))
