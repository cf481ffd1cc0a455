"""The cache counts as flushed when every scheduler has flushed its own.

Where attention is divided over data-parallel ranks (--enable-dp-attention), each has a scheduler
and a cache of prefixes. SGLang reports the answer that came first: a scheduler that was still busy
would go on from prefixes that earlier weights computed, and nobody would hear of it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any


async def _flush(original: Callable[..., Any], manager: Any, *args: Any, **kw: Any) -> Any:
    """SGLang's own, which returns the first answer: refusals come first."""

    async def refusals_first(request: Any) -> list[Any]:
        answers = await manager.flush_cache_communicator(request)
        return sorted(answers, key=lambda answer: answer.success)

    stand_in = SimpleNamespace(
        auto_create_handle_loop=manager.auto_create_handle_loop,
        flush_cache_communicator=refusals_first,
    )
    return await original(stand_in, *args, **kw)


AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.flush_cache": _flush}
)
"""SGLang 0.5.17's function and the hook around it."""
