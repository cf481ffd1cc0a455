"""A failure of one rank is a failure of all: none waits in a collective for one that gave up."""

import pickle

import torch.distributed as dist
from slime_core.errors import SlimeError
from torch.distributed.checkpoint.api import CheckpointException


class RemoteError(SlimeError, RuntimeError):
    """A rank failed, with an error that cannot be sent; the message is the error's."""


def raise_everywhere(failure: Exception | None) -> None:
    """Raise the first rank's ``failure``, if any, on every rank; all of them wait here."""
    told: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, _portable(failure))
    failures = [(rank, each) for rank, each in enumerate(told) if each is not None]
    if failures:
        rank, first = failures[0]
        raise failure if failure is not None and rank == dist.get_rank() else first


def first_failure(failure: BaseException | None) -> str | None:
    """What went wrong on the first rank that says so, the same text on every rank; collective."""
    told: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(told, "" if failure is None else reason(failure))
    return next((text for text in told if text), None)


def reason(error: BaseException) -> str:
    """One line about ``error``, without the tracebacks torch puts into its message.

    Empty for a ``CheckpointException`` that tells of another rank's failure.
    """
    if not isinstance(error, CheckpointException):
        return f"rank {dist.get_rank()}: {type(error).__name__}: {error}"
    causes = [f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items()]
    return "; ".join(causes)


def _portable(failure: Exception | None) -> Exception | None:
    try:
        copied: Exception | None = pickle.loads(pickle.dumps(failure))
    except Exception:  # whatever a class outside this repository raises
        return RemoteError(f"rank {dist.get_rank()}: {type(failure).__name__}: {failure}")
    return copied
