"""Advantages from a function of the user's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from slime_core.batch import PolicySignals, Ragged, TrainBatch
from slime_core.errors import PluginError
from slime_core.plugins.functions import bind, load_hook
from slime_core.plugins.keyed import Keyed

CustomAdvantages = Callable[[TrainBatch, PolicySignals, list[Tensor]], dict[str, list[Tensor]]]
"""(batch, signals, KL per token) -> ``advantages`` and ``returns``, one vector per sample."""


def custom_advantages(spec: str, flat: Mapping[str, Any]) -> CustomAdvantages:
    """Adapt ``f(args, rollout_data)``, which puts ``advantages`` and ``returns`` into its data.

    The data are lists with one entry per sample under upstream's names; vectors are
    response-aligned.
    """
    call = bind(load_hook("custom_advantage_function_path", spec), flat)

    def run(batch: TrainBatch, signals: PolicySignals, kl: list[Tensor]) -> dict[str, list[Tensor]]:
        data = Keyed("rollout_data", rollout_data(batch, signals) | {"kl": kl})
        call(data)
        lengths: list[int] = batch.response_lengths.tolist()
        return {
            name: _checked(spec, name, data.get(name), lengths)
            for name in ("advantages", "returns")
        }

    return run


def rollout_data(batch: TrainBatch, signals: PolicySignals) -> dict[str, Any]:
    """A batch and what policies say of it, by upstream's names, a list entry per sample."""
    data: dict[str, Any] = {
        "tokens": list(batch.tokens.split()),
        "total_lengths": batch.tokens.lengths.tolist(),
        "response_lengths": batch.response_lengths.tolist(),
        "loss_masks": list(batch.loss_mask.split()),
        "rewards": batch.rewards.tolist(),
        "raw_reward": batch.raw_rewards.tolist(),
        "truncated": batch.truncated.int().tolist(),
        "sample_indices": batch.sample_ids.tolist(),
        "rollout_ids": batch.rollout_ids.tolist(),
        "rollout_mask_sums": batch.rollout_token_counts.tolist(),
    }
    ragged: dict[str, Ragged | None] = {
        "log_probs": signals.log_probs,
        "ref_log_probs": signals.ref_log_probs,
        "values": signals.values,
        "rollout_log_probs": batch.rollout_log_probs,
        "teacher_log_probs": signals.teacher_log_probs or batch.teacher_log_probs,
    }
    return data | {name: list(x.split()) for name, x in ragged.items() if x is not None}


def _checked(spec: str, name: str, rows: Any, lengths: list[int]) -> list[Tensor]:
    found = None if rows is None else [torch.as_tensor(row).float() for row in rows]
    if found is None or [row.numel() for row in found] != lengths:
        shown = None if found is None else [row.numel() for row in found]
        raise PluginError(
            f"plugin {spec!r} must set rollout_data[{name!r}] to one vector per sample of "
            f"{lengths} tokens, but set {shown}"
        )
    return found
