"""Ask a server for a sign of life, with one deadline over everything that it takes."""

import asyncio

import aiohttp


def status_of(url: str, timeout_s: float) -> int | None:
    """The HTTP status that ``url`` answers with, its body read; None if it has not within that.

    To connect counts, and so does every pause between two bytes. Not for use in an event loop.
    """
    return asyncio.run(_status_of(url, timeout_s))


async def _status_of(url: str, timeout_s: float) -> int | None:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        # Servers are on this machine or on the cluster's network: never behind a proxy.
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as http,
            http.get(url) as reply,
        ):
            await reply.read()
            return reply.status
    except (aiohttp.ClientError, TimeoutError):
        return None
