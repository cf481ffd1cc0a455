"""Work that is done at once and ends together: no part of it outlives a failure of another."""

import asyncio
import logging
from collections.abc import Awaitable, Collection
from typing import Any

logger = logging.getLogger(__name__)

END_S = 30.0
"""For what was cancelled; user code may take its time, or never end."""


async def together[T](*works: Awaitable[T]) -> list[T]:
    """What each returns, in order; once one raises, the others are cancelled and it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await end(tasks)
        raise


async def both[A, B](first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """``together`` for two that return different things."""
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    works: tuple[Awaitable[Any], ...] = one, other
    await together(*works)
    return one.result(), other.result()  # waits: both are done


async def end(tasks: Collection["asyncio.Future[Any]"]) -> None:
    """Cancel ``tasks`` and wait, not for ever, until they have ended; nothing is raised."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        _, left = await asyncio.wait(running, timeout=END_S)
        if left:
            logger.warning("%d tasks go on %.0f s after they were cancelled", len(left), END_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # waits: is done; asyncio would report it as forgotten
