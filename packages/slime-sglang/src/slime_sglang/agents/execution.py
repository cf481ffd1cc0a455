"""What a user function that completes a sample may call meanwhile: ``generate_single``."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, overload

from slime_core.data.chat import Message
from slime_core.errors import EngineError
from slime_core.types import Sample

from slime_sglang.agents.endpoints import Endpoints
from slime_sglang.agents.reply import Reply
from slime_sglang.agents.session import Session
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling

_active: ContextVar["Execution | None"] = ContextVar("_active", default=None)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Execution:
    """One call of a user function."""

    session: Session
    sampling: Sampling
    """How its samples are drawn, unless a request says otherwise."""
    request: Callable[[Sample, Sampling], Awaitable[Sample]]
    """Continues a sample by one request to an engine."""
    endpoints: Callable[[], Awaitable[Endpoints]]
    """The OpenAI and Anthropic interfaces, started when first asked for."""
    agents: AgentSettings

    @contextmanager
    def under_way(self) -> Generator[None]:
        """``active`` finds it within the block, also from the tasks that are begun there."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


@overload
async def generate_single(
    conversation: Sequence[Message] | str,
    sampling_params: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> Reply: ...
@overload
async def generate_single(
    args: Any, sample: Sample, sampling_params: Mapping[str, Any] | None = None
) -> Sample: ...
async def generate_single(*given: Any, **named: Any) -> Any:
    """What a custom generate function calls to have the model say something.

    ``await generate_single(conversation)`` returns the model's next turn as text. What the
    conversation repeats of earlier turns keeps the tokens it was made of, and the returned sample
    gets them all. ``await generate_single(args, sample)`` continues the tokens of ``sample``.

    ``sampling_params`` may change temperature, top_p, top_k, max_new_tokens, stop and
    stop_token_ids of this request. Works only while slime is generating.
    """
    execution = active()
    if "sample" in named or any(isinstance(value, Sample) for value in given[:2]):
        return await _continued(execution, *given, **named)
    return await _next_turn(execution, *given, **named)


async def _continued(
    execution: Execution,
    args: Any,
    sample: Sample,
    sampling_params: Mapping[str, Any] | None = None,
) -> Sample:
    sampling = _changed(execution.sampling, sample.response_length, sampling_params or {})
    return await execution.request(sample, sampling)


async def _next_turn(
    execution: Execution,
    conversation: Sequence[Message] | str,
    sampling_params: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> Reply:
    session, params = execution.session, sampling_params or {}
    sampling = _changed(execution.sampling, None, params)
    extra = {"max_new_tokens": params.get("max_new_tokens")}
    offered = session.sample.metadata.get("tools") if tools is None else tools
    return Reply.of(await session.reply(conversation, offered, sampling, extra))


def active() -> Execution:
    """The execution that the caller is part of."""
    found = _active.get()
    if found is None:
        raise EngineError("generate_single works only inside a custom generate function")
    return found


def _changed(sampling: Sampling, length: int | None, params: Mapping[str, Any]) -> Sampling:
    names = ("temperature", "top_p", "top_k", "stop", "stop_token_ids")
    changes: dict[str, Any] = {name: params[name] for name in names if name in params}
    if length is not None and params.get("max_new_tokens") is not None:
        longest = length + int(params["max_new_tokens"])
        changes["max_response_len"] = min(sampling.max_response_len, longest)
    return replace(sampling, **changes)
