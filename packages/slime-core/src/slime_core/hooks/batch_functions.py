"""User functions that build a batch, or change it after advantages are known.

    convert(args, samples) -> dict                    --custom-convert-samples-to-train-data-path
    postprocess(args, rollout_id, rollout_data)       --rollout-data-postprocess-path

Data are upstream's: a dictionary of lists with one entry per sample, vectors response-aligned.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slime_core.advantages.custom import rollout_data
from slime_core.batch import PolicySignals, Ragged, Targets, TrainBatch
from slime_core.collate import token_counts
from slime_core.config.flat import Flat
from slime_core.errors import PluginError
from slime_core.plugins.functions import bind, load_hook
from slime_core.plugins.keyed import Keyed
from slime_core.types import SampleGroup

Convert = Callable[[Sequence[SampleGroup]], TrainBatch]
Postprocess = Callable[[int, TrainBatch, PolicySignals, Targets], tuple[Targets, Ragged]]
"""(iteration, batch, signals, targets) -> targets and loss masks to train with."""


def custom_convert(spec: str, flat: Flat) -> Convert:
    """Adapt ``f(args, samples)``, which returns the columns of a batch.

    ``tokens``, ``response_lengths`` and ``rewards`` are needed; ``raw_reward``, ``truncated``,
    ``loss_masks``, ``sample_indices``, ``rollout_ids``, ``rollout_log_probs`` and
    ``teacher_log_probs`` are filled in or left out. Group indices are those of the samples, so as
    many rows are expected.

    Raises:
        PluginError: it cannot be loaded; when called: a column is missing or of another length.
    """
    call = bind(load_hook("custom_convert_samples_to_train_data_path", spec), flat)

    def convert(groups: Sequence[SampleGroup]) -> TrainBatch:
        pairs = [(group.group_index, sample) for group in groups for sample in group.samples]
        data = call([sample for _, sample in pairs])
        columns = _Columns(spec, data, len(pairs))
        lengths = [int(n) for n in columns.required("response_lengths")]
        masks = columns.vectors("loss_masks", lengths) or [[1] * n for n in lengths]
        rewards = columns.required("rewards")
        rollouts = columns.optional("rollout_ids") or list(range(len(pairs)))
        return TrainBatch(
            tokens=Ragged.from_lists(
                [_list(row) for row in columns.required("tokens")], torch.int64
            ),
            response_lengths=torch.tensor(lengths),
            loss_mask=Ragged.from_lists(masks, torch.float32),
            rewards=_floats(rewards),
            raw_rewards=_floats(columns.optional("raw_reward") or rewards),
            truncated=torch.tensor(columns.optional("truncated") or [0] * len(pairs)).bool(),
            sample_ids=torch.tensor(columns.optional("sample_indices") or list(range(len(pairs)))),
            group_ids=torch.tensor([index for index, _ in pairs]),
            rollout_ids=torch.tensor(rollouts),
            rollout_token_counts=token_counts(rollouts, masks),
            rollout_log_probs=columns.ragged("rollout_log_probs", lengths),
            teacher_log_probs=columns.ragged("teacher_log_probs", lengths),
        )

    return convert


class _Columns:
    """What a conversion returned, checked while it is read."""

    def __init__(self, spec: str, data: Any, num_rows: int) -> None:
        if not isinstance(data, Mapping):
            raise PluginError(
                f"plugin {spec!r} must return a dictionary of lists, not {data!r:.60}"
            )
        self._spec, self._num_rows = spec, num_rows
        self._data: Mapping[str, Any] = data

    def optional(self, name: str) -> list[Any] | None:
        """A column, if it is there."""
        if self._data.get(name) is None:
            return None
        column = _list(self._data[name])
        if len(column) != self._num_rows:
            raise PluginError(
                f"plugin {self._spec!r}: {name!r} has {len(column)} entries "
                f"for {self._num_rows} samples"
            )
        return column

    def required(self, name: str) -> list[Any]:
        """A column that has to be there."""
        column = self.optional(name)
        if column is None:
            raise PluginError(f"plugin {self._spec!r} must return {name!r}")
        return column

    def vectors(self, name: str, lengths: Sequence[int]) -> list[list[Any]] | None:
        """A column of response-aligned vectors."""
        column = self.optional(name)
        if column is None:
            return None
        rows = [_list(row) for row in column]
        if [len(row) for row in rows] != list(lengths):
            raise PluginError(
                f"plugin {self._spec!r}: {name!r} has vectors of {[len(row) for row in rows]} "
                f"entries for responses of {list(lengths)} tokens"
            )
        return rows

    def ragged(self, name: str, lengths: Sequence[int]) -> Ragged | None:
        """The same as floats in one tensor."""
        rows = self.vectors(name, lengths)
        return None if rows is None else Ragged.from_lists(rows, torch.float32)


def data_postprocess(spec: str, flat: Flat) -> Postprocess:
    """Adapt ``f(args, rollout_id, rollout_data)``, called on the trainer before its steps.

    It changes ``advantages``, ``returns`` and ``loss_masks`` in its data. Masks choose among the
    tokens; what means are taken over was settled before, so masking more lowers the loss's weight.

    Raises:
        PluginError: it cannot be loaded; when called: a vector has another length or is not finite,
            or a mask has tokens that were masked before.
    """
    call = bind(load_hook("rollout_data_postprocess_path", spec), flat)

    def postprocess(
        iteration: int, batch: TrainBatch, signals: PolicySignals, targets: Targets
    ) -> tuple[Targets, Ragged]:
        data = Keyed("rollout_data", rollout_data(batch, signals))
        data["advantages"] = [row.clone() for row in targets.advantages.split()]
        data["loss_masks"] = [row.clone() for row in batch.loss_mask.split()]
        if targets.returns is not None:
            data["returns"] = [row.clone() for row in targets.returns.split()]
        call(iteration, data)
        masks = _like(spec, "loss_masks", data, batch.loss_mask)
        if bool((masks.values > batch.loss_mask.values).any()):
            raise PluginError(
                f"plugin {spec!r} unmasked tokens: rollout_data['loss_masks'] can only mask more"
            )
        changed = Targets(
            _like(spec, "advantages", data, targets.advantages),
            targets.returns and _like(spec, "returns", data, targets.returns),
        )
        for name, vector in (("advantages", changed.advantages), ("returns", changed.returns)):
            if vector is not None and not vector.values[masks.values > 0].isfinite().all():
                raise PluginError(
                    f"plugin {spec!r} set rollout_data[{name!r}] to what is not finite at tokens "
                    "that are trained on"
                )
        return changed, masks

    return postprocess


def _like(spec: str, name: str, data: Mapping[str, Any], before: Ragged) -> Ragged:
    rows = [torch.as_tensor(row).float() for row in data.get(name) or ()]
    lengths = before.lengths.tolist()
    if [row.numel() for row in rows] != lengths:
        raise PluginError(
            f"plugin {spec!r}: rollout_data[{name!r}] must stay one vector per sample of "
            f"{lengths} tokens, but has {[row.numel() for row in rows]}"
        )
    return Ragged.from_tensors(rows) if rows else before


def _list(values: Any) -> list[Any]:
    """Of an array or a tensor the numbers: tensors of one number each are never equal as keys."""
    listed = getattr(values, "tolist", None)
    return list(values) if listed is None else listed()


def _floats(values: Sequence[Any]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float32)
