import asyncio
import threading
import time

import pytest
from slime_core.processes import event_loop
from slime_core.processes.event_loop import EventLoop


@pytest.fixture
def loop():
    loop = EventLoop("of a test")
    yield loop
    loop.close()


def test_a_task_goes_on_between_two_calls(loop):
    done = threading.Event()
    tasks = []

    async def leave_something_behind():
        async def later():
            await asyncio.sleep(0.01)
            done.set()

        tasks.append(asyncio.create_task(later()))
        return "answered"

    assert loop.run(leave_something_behind()) == "answered"
    assert done.wait(10)


def test_errors_come_back_timeouts_too(loop):
    async def fail(error):
        raise error

    for error in (ValueError("a bug"), TimeoutError("of its own")):
        with pytest.raises(type(error), match=str(error)):
            loop.run(fail(error))


def test_what_still_runs_is_cancelled_at_the_end():
    loop, ended = EventLoop("of a test"), []

    async def leave_something_behind():
        async def forever():
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(True)

        ended.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    loop.run(leave_something_behind())
    loop.close()
    loop.close()
    assert ended[1:] == [True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_was_ended_says_so_rather_than_waits(loop):
    async def leave():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(3600)

    with pytest.raises(RuntimeError, match="'of a test' has ended"):
        loop.run(leave())


@pytest.mark.parametrize("held", [True, False])
def test_a_function_that_holds_the_loop_is_told_once_with_the_line_it_is_at(
    held, monkeypatch, caplog
):
    async def of_a_user():
        if held:
            time.sleep(0.5)
        else:
            await asyncio.sleep(0.5)

    monkeypatch.setattr(event_loop, "_LOOK_S", 0.02)
    monkeypatch.setattr(event_loop, "_HELD_S", 0.2)
    loop = EventLoop("generation")
    try:
        loop.run(of_a_user())
    finally:
        loop.close()
    told = [
        message for message in caplog.messages if "holds the event loop of generation" in message
    ]
    assert len(told) == held
    assert all("in of_a_user\n    time.sleep(0.5)" in text for text in told)
    for inside in ("run_forever", "_bootstrap", "self._target"):
        assert all(inside not in text for text in told)


def test_a_loop_of_another_kind_shows_no_lines_of_its_thread_either(monkeypatch, caplog):
    uvloop = pytest.importorskip("uvloop")

    async def of_a_user():
        time.sleep(0.5)

    monkeypatch.setattr(event_loop, "_LOOK_S", 0.02)
    monkeypatch.setattr(event_loop, "_HELD_S", 0.2)
    monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)
    loop = EventLoop("generation")
    try:
        loop.run(of_a_user())
    finally:
        loop.close()
    (told,) = caplog.messages
    assert "_bootstrap" not in told
    assert "in of_a_user\n    time.sleep(0.5)" in told
