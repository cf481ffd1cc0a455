"""Pauses, on a manager that only counts."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from slime_sglang.server import pausing


class Manager:
    """Its requests end at the look of that number."""

    def __init__(self, ends: int) -> None:
        self.is_pause_cond, self.is_pause, self.model_update_lock = asyncio.Condition(), False, self
        self.aborts = self.looks = 0
        self._ends = ends

    def abort_request(self, *, abort_all: bool) -> None:
        self.aborts += abort_all

    async def is_locked(self) -> bool:
        assert self.is_pause, "new requests have to wait already"
        self.looks += 1
        return self.looks < self._ends


async def original(manager: Manager, request: Any) -> None:
    manager.aborts = -1


def pause(manager: Manager, mode: str) -> Manager:
    asyncio.run(pausing._pause(original, manager, SimpleNamespace(mode=mode)))
    return manager


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "_LOOK_S", 0.0)


@pytest.mark.parametrize(("ends", "aborts"), [(1, 1), (3, 1), (101, 2)])
def test_it_ends_with_the_requests_and_aborts_again_what_is_slow(ends: int, aborts: int) -> None:
    manager = pause(Manager(ends), "abort")
    assert (manager.is_pause, manager.looks, manager.aborts) == (True, ends, aborts)


def test_other_pauses_are_the_engines_own() -> None:
    manager = pause(Manager(1), "in_place")
    assert (manager.looks, manager.aborts) == (0, -1)
