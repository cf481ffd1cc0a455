import asyncio
import gc
import logging
import time

import pytest
from slime_sglang import together as module
from slime_sglang.together import end, together


async def after(ticks: int, value: int) -> int:
    for _ in range(ticks):
        await asyncio.sleep(0)
    return value


def test_answers_come_in_the_order_of_the_questions() -> None:
    async def scenario() -> None:
        assert await together(after(9, 1), after(1, 2)) == [1, 2]
        assert await together() == []

    asyncio.run(scenario())


def test_the_first_failure_is_raised_when_the_others_have_ended() -> None:
    ended: list[str] = []

    async def lasting() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")
        return 0

    async def failing() -> int:
        await asyncio.sleep(0)
        raise KeyError("lable")

    async def scenario() -> None:
        with pytest.raises(KeyError, match="lable"):
            await together(lasting(), failing(), lasting())
        assert ended == ["cleaned up"] * 2
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_who_does_not_end_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "END_S", 0.05)
    released: asyncio.Event

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def scenario() -> None:
        nonlocal released
        released = asyncio.Event()
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        begin = time.monotonic()
        with caplog.at_level(logging.WARNING):
            await end([task])
        assert time.monotonic() - begin < 10
        assert "1 tasks go on" in caplog.text
        released.set()
        await task

    asyncio.run(scenario())


def test_what_fails_beside_the_first_failure_is_not_reported_as_forgotten(caplog) -> None:
    async def failing(what: str) -> int:
        raise KeyError(what)

    async def scenario() -> None:
        tasks = [asyncio.create_task(failing(what)) for what in ("first", "second")]
        await asyncio.wait(tasks)
        await end(tasks)
        del tasks
        gc.collect()

    asyncio.run(scenario())
    assert "never retrieved" not in caplog.text
