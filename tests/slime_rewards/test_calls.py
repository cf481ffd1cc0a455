import asyncio
import threading
import time

import pytest
from slime_rewards.calls import Calls


@pytest.fixture
def calls():
    made = Calls(0.4)
    yield made
    made.close()


def run(*work):
    async def scenario():
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(scenario())


async def later(value, seconds=0.01):
    await asyncio.sleep(seconds)
    return value


def test_functions_of_both_kinds_give_their_value(calls):
    assert run(calls.run(lambda x: x + 1, 1), calls.run(later, 3)) == [2, 3]
    assert run(calls.run(later, 4)) == [4]


def test_what_a_function_raises_is_raised(calls):
    async def fail():
        raise KeyError("a")

    first, second = run(calls.run(lambda: 1 / 0), calls.run(fail))
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, KeyError)


def test_a_late_function_costs_its_deadline_and_no_other_call(calls):
    start = time.monotonic()
    late, later_still, good = run(
        calls.run(time.sleep, 30), calls.run(later, 1, 30), calls.run(later, 2)
    )
    assert time.monotonic() - start < 1.4
    assert (type(late), type(later_still), good) == (TimeoutError, TimeoutError, 2)


def test_a_blocked_event_loop_is_left_behind(calls):
    done = threading.Event()

    async def block():
        done.wait(30)

    (blocked,) = run(calls.run(block))
    assert isinstance(blocked, TimeoutError)
    assert run(calls.run(later, 5)) == [5]
    done.set()


def test_asynchronous_functions_share_a_loop_and_see_the_callers_context(calls):
    async def loop():
        return asyncio.get_running_loop()

    first, second = run(calls.run(loop), calls.run(loop))
    (third,) = run(calls.run(loop))
    assert first is second is third
