"""A pause that aborts ends as soon as the requests have.

SGLang looks once a second whether they have; a publish into running requests would take that long.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_LOOK_S = 0.01
_LOOKS = 100
"""Between two aborts: one may overtake a request on its way."""


async def _pause(original: Callable[..., Any], manager: Any, request: Any) -> None:
    """SGLang's own but for how often it looks; whoever asked for it has a deadline."""
    if request.mode != "abort":
        await original(manager, request)
        return
    async with manager.is_pause_cond:
        manager.is_pause = True
        while True:
            manager.abort_request(abort_all=True)
            for _ in range(_LOOKS):
                if not await manager.model_update_lock.is_locked():
                    return
                await asyncio.sleep(_LOOK_S)


AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sglang.srt.managers.tokenizer_manager.TokenizerManager.pause_generation": _pause}
)
"""SGLang 0.5.17's function and the hook around it."""
