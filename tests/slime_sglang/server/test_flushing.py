"""Flushes of several schedulers, on a manager that only asks."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from slime_sglang.server import flushing


class Manager:
    """Its schedulers answer these, in that order."""

    def __init__(self, *answers: bool) -> None:
        self.asked: list[Any] = []
        self._answers = answers

    def auto_create_handle_loop(self) -> None:
        pass

    async def flush_cache_communicator(self, request: Any) -> list[Any]:
        self.asked.append(request)
        return [SimpleNamespace(success=a, rank=rank) for rank, a in enumerate(self._answers)]


async def original(manager: Any, timeout_s: float) -> Any:
    """What SGLang's does."""
    manager.auto_create_handle_loop()
    return (await manager.flush_cache_communicator(timeout_s))[0]


@pytest.mark.parametrize(
    ("answers", "flushed", "rank"),
    [((True,), True, 0), ((True, True), True, 0), ((True, False), False, 1), ((False,), False, 0)],
)
def test_a_cache_is_flushed_when_every_scheduler_has_flushed_its_own(
    answers: tuple[bool, ...], flushed: bool, rank: int
) -> None:
    manager = Manager(*answers)
    found = asyncio.run(flushing._flush(original, manager, timeout_s=1.5))
    assert (found.success, found.rank, manager.asked) == (flushed, rank, [1.5])
