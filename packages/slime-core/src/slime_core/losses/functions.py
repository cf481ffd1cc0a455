"""Functions of the user's inside the policy loss, adapted from upstream's signatures.

Under context parallelism they see whole responses, on every rank that holds some of their tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LocalTokens, LossInputs
from slime_core.errors import PluginError
from slime_core.interfaces import Reduce
from slime_core.losses.sequence import num_ranks, whole
from slime_core.plugins.functions import bind, load_hook


@runtime_checkable
class ImportanceFunction(Protocol):
    """--custom-tis-function-path: reweighs the policy loss of some tokens."""

    def __call__(
        self, pg_loss: Float[Tensor, " tokens"], inputs: LossInputs, context: Reduce
    ) -> tuple[Float[Tensor, " tokens"], Mapping[str, Tensor]]:
        """The loss per token, and what to report per token."""
        ...


@runtime_checkable
class PolicyReducer(Protocol):
    """--custom-pg-loss-reducer-function-path: adds up the policy loss of a microbatch."""

    def __call__(
        self, pg_loss: Float[Tensor, " tokens"], tokens: LocalTokens, context: Reduce
    ) -> Float[Tensor, ""]:
        """This rank's share of the sum."""
        ...


@dataclass(frozen=True, slots=True)
class LossFunctions:
    """What the user replaces; None keeps what is built in."""

    importance: ImportanceFunction | None = None
    reducer: PolicyReducer | None = None


def custom_importance(spec: str, flat: Mapping[str, Any]) -> ImportanceFunction:
    """Adapt ``f(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, ...)``.

    It gets the loss of all response tokens of the microbatch end to end, and lists of one vector
    per sample; it returns the loss, masks and metrics, per token. Its masks leave tokens out of the
    loss but not out of the denominator. ``total_lengths`` are the response lengths: prompts are not
    here.
    """
    call = bind(load_hook("custom_tis_function_path", spec), flat)

    def reweigh(
        pg_loss: Tensor, inputs: LossInputs, context: Reduce
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert inputs.rollout_log_probs is not None, "checked by the caller"
        tokens, lengths = inputs.tokens, list(inputs.tokens.response_lengths)

        def rows(x: Tensor) -> list[Tensor]:
            return list(whole(x, tokens, context).split(lengths))

        found = call(
            pg_loss=whole(pg_loss, tokens, context),
            train_log_probs=rows(inputs.old_log_probs),
            rollout_log_probs=rows(inputs.rollout_log_probs),
            loss_masks=rows(tokens.mask.to(pg_loss.dtype)),
            total_lengths=lengths,
            response_lengths=lengths,
        )
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise PluginError(
                f"plugin {spec!r} must return (loss, masks, metrics), returned {found!r:.80}"
            )
        weighted, masks, metrics = found
        kept = _joined(masks).to(pg_loss.dtype)
        loss = _checked(spec, "loss", weighted * kept, sum(lengths))[tokens.position]
        report = {name: _checked(spec, name, x, sum(lengths)) for name, x in metrics.items()}
        return loss, {name: x.detach()[tokens.position] for name, x in report.items()}

    return reweigh


def custom_reducer(spec: str, flat: Mapping[str, Any]) -> PolicyReducer:
    """Adapt ``f(total_lengths, response_lengths, masks, calculate_per_token_loss)``.

    It returns a function from the loss of all response tokens end to end to a number: a sum over
    samples, which the trainer divides by what --loss-aggregation divides by (rollouts or tokens).
    """
    make = load_hook("custom_pg_loss_reducer_function_path", spec)
    per_token = bool(flat.get("calculate_per_token_loss", False))

    def reduce(pg_loss: Tensor, tokens: LocalTokens, context: Reduce) -> Tensor:
        lengths = list(tokens.response_lengths)
        masks = list(whole(tokens.mask.to(pg_loss.dtype), tokens, context).split(lengths))
        reducer = make(lengths, lengths, masks, per_token)
        if not callable(reducer):
            raise PluginError(
                f"plugin {spec!r} must return a function of the loss per token, returned "
                f"{reducer!r:.80}"
            )
        total = reducer(whole(pg_loss, tokens, context))
        if not isinstance(total, Tensor) or total.numel() != 1:
            raise PluginError(
                f"plugin {spec!r}: its reduction must give one number, gave {total!r}"
            )
        return total.reshape(()) / num_ranks(pg_loss, context)

    return reduce


def _joined(masks: Any) -> Tensor:
    return masks if isinstance(masks, Tensor) else torch.cat(list(masks))


def _checked(spec: str, name: str, x: Any, length: int) -> Tensor:
    vector = torch.cat([row.reshape(-1) for row in x]) if isinstance(x, list | tuple) else x
    if not isinstance(vector, Tensor) or vector.numel() != length:
        shown = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise PluginError(
            f"plugin {spec!r}: `{name}` must be one vector of the {length} response tokens, "
            f"is {shown}"
        )
    return vector.reshape(-1)
