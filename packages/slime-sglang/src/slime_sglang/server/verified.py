"""Hooks around SGLang's weight updates: check the digests that came along, while loading.

Weights without digests (a user's own update) pass through untouched and earn no receipt. Every
tensor-parallel rank checks what it received itself; the first rank answers for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slime_core.errors import WeightSyncError
from torch import Tensor

from slime_sglang.weights import digests
from slime_sglang.weights.disk_format import read_digests
from slime_sglang.weights.local_copy import bring
from slime_sglang.weights.version_index import read_index

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
_LOADER = "sglang.srt.model_loader.loader.DefaultModelLoader"

_Outcome = tuple[bool, str]
_reading: ContextVar[Mapping[str, str] | None] = ContextVar("slime_reading", default=None)
"""Digests of the version on disk that is being loaded."""


class _Checked:
    """The live model, except that ``load_weights`` verifies."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.digests: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
        """Strip the digests, and load while a GPU receives them and works out what they should be.

        Buckets before a damaged one are in the model already, so it may as well be: an engine goes
        on generating only after a publish of which it has confirmed every bucket.
        """
        tensors, told = digests.split(weights)
        if told is None:
            return self._model.load_weights(tensors, *args, **kwargs)
        verify = digests.begin_verifying(tensors, told)
        loaded = self._model.load_weights(tensors, *args, **kwargs)
        self.digests = verify()
        return loaded


def _checked_update(original: Callable[..., _Outcome], updater: Any, *args: Any, **kw: Any) -> Any:
    checked = _Checked(updater.get_model())
    stand_in = dataclasses.replace(updater, get_model=lambda: checked)
    return _agreed(_attempt(functools.partial(original, stand_in, *args, **kw), checked))


def _attempt(update: Callable[[], _Outcome], checked: _Checked) -> _Outcome:
    try:
        succeeded, message = update()
    except Exception as error:  # the scheduler would die of it and take the server along
        return False, f"{type(error).__name__}: {error}"
    if succeeded and checked.digests:
        message = f"{message} {digests.receipt(checked.digests)}"
    return succeeded, message


def _update_from_disk(
    original: Callable[..., _Outcome], updater: Any, model_path: str, *args: Any, **kw: Any
) -> _Outcome:
    return _agreed(_from_disk(functools.partial(original, updater), Path(model_path), args, kw))


def _from_disk(
    load: Callable[..., _Outcome], source: Path, args: tuple[Any, ...], kw: Mapping[str, Any]
) -> _Outcome:
    """Load a version, by way of this machine's copy where the version says so."""
    token = None
    try:
        index = read_index(source)
        directory = source if index is None else bring(source, index)
        expected = read_digests(directory)
        token = _reading.set(expected or None)
        succeeded, message = load(str(directory), *args, **kw)
    except Exception as error:  # SGLang retries a failed load from the same files, unguarded
        return False, f"{type(error).__name__}: {error}"
    finally:
        if token is not None:
            _reading.reset(token)
    if succeeded and expected:
        message = f"{message} {digests.receipt(expected)}"
    return succeeded, message


def _weights_on_disk(original: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    weights = original(*args, **kw)
    expected = _reading.get()
    return weights if expected is None else _verified_stream(weights, expected)


def _verified_stream(
    weights: Iterable[tuple[str, Tensor]], expected: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for name, tensor in weights:
        if name != digests.DIGESTS:
            digests.verify_one(name, tensor, expected)
            seen.add(name)
            yield name, tensor
    digests.missing(expected, seen)


def _agreed(outcome: _Outcome) -> _Outcome:
    """The outcome of all tensor-parallel ranks: the first failure, or this rank's success."""
    import torch.distributed as dist
    from sglang.srt.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return outcome
    outcomes: list[Any] = [None] * group.world_size
    dist.all_gather_object(outcomes, outcome, group=group.cpu_group)
    failures = [(False, f"rank {rank}: {m}") for rank, (ok, m) in enumerate(outcomes) if not ok]
    if not failures and len({message for _, message in outcomes}) > 1:
        raise WeightSyncError(f"tensor-parallel ranks received different weights: {outcomes}")
    return failures[0] if failures else outcome


AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        f"{_UPDATER}.update_weights_from_tensor": _checked_update,
        f"{_UPDATER}.update_weights_from_distributed": _checked_update,
        f"{_UPDATER}.update_weights_from_disk": _update_from_disk,
        f"{_LOADER}._get_weights_iterator": _weights_on_disk,
    }
)
"""SGLang 0.5.17's functions and the hooks around them."""
