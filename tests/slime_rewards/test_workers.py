import asyncio
import time

import pytest
from slime_rewards.workers import MathWorkers


@pytest.fixture
def workers():
    made = MathWorkers(num_workers=2, time_limit_s=20.0)
    yield made
    made.close()


def test_plain_numbers_start_no_process(workers):
    assert asyncio.run(workers.grade("4", "4")) == 1.0
    assert workers._idle.queue == [None, None]


def test_algebra_and_a_hostile_expression(workers):
    async def run():
        workers._limit = 20.0
        right = await workers.grade(r"\boxed{(x+1)^2}", "x^2+2x+1")
        workers._limit = 1.5
        start = time.monotonic()
        slow = workers.grade(r"\boxed{9^{9^{9^{9}}} + x}", "x + 1")
        ticks = 0
        task = asyncio.ensure_future(slow)
        while not task.done():
            await asyncio.sleep(0.05)
            ticks += 1
        return right, await task, ticks, time.monotonic() - start

    right, slow, ticks, seconds = asyncio.run(run())
    assert (right, slow) == (1.0, 0.0)
    assert ticks >= 1
    assert seconds < 60
    workers._limit = 20.0
    assert asyncio.run(workers.grade(r"\boxed{2\sqrt{3}}", r"\sqrt{12}")) == 1.0


def test_a_process_that_died_is_replaced(workers):
    assert asyncio.run(workers.grade(r"\boxed{x+1}", "1+x")) == 1.0
    for worker in workers._idle.queue:
        if worker is not None:
            worker._process.kill()
            worker._process.wait()
    assert asyncio.run(workers.grade(r"\boxed{x+1}", "1+x")) == 1.0
