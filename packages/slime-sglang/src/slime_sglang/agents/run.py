"""Let an agent that knows nothing of training produce samples."""

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from slime_core.types import Sample, Status

from slime_sglang.agents.session import LateError
from slime_sglang.rollout.execution import active

Agent = Callable[[str, str, Sample], Awaitable[Any]]
"""(base_url, api_key, sample) -> None, a reward (number or dictionary), or the answer (text)."""

_SHOWN = 65536


class AgentError(RuntimeError):
    """An agent's command ended with an error."""


async def run_agent(
    args: Any,
    sample: Sample,
    sampling_params: Mapping[str, Any] | None = None,
    *,
    agent: Agent | str | Sequence[str],
    timeout_s: float | None = None,
) -> Sample | list[Sample]:
    """What a custom generate function calls to have ``agent`` work on ``sample``.

    The agent finds the model behind the OpenAI and Anthropic interfaces at the address it is
    given; every token of its requests is kept. A command (words, or text split like a shell does)
    gets address and key in OPENAI_BASE_URL, OPENAI_API_KEY, ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY
    and the sample's prompt, label and metadata as JSON on its standard input.

    Returns:
        The sample, or its segments where the agent led several conversations. An agent that is
        late (``timeout_s``, by default --agent-timeout-s) keeps what it has, as truncated.
    """
    execution = active()
    session = execution.session
    endpoints = await execution.endpoints()
    key = endpoints.open(session)
    address = endpoints.address(key)
    work = agent(address, key, sample) if callable(agent) else _command(agent, address, key, sample)
    late = False
    try:
        result = await session.watch(work, timeout_s or execution.agents.timeout_s)
        _note(sample, result)
    except LateError:
        late = True
    finally:
        endpoints.close(key)
    if session.problem is not None:
        raise session.problem
    segments = session.samples(sample)
    for segment in segments if late else ():
        segment.status = Status.TRUNCATED
        segment.metadata["agent"] = "late"
    return segments[0] if len(segments) == 1 else segments


def _note(sample: Sample, result: Any) -> None:
    if isinstance(result, str):
        sample.response = result
    elif isinstance(result, bool | int | float):
        sample.reward = float(result)
    elif isinstance(result, dict):
        sample.reward = cast("dict[str, Any]", result)


async def _command(command: str | Sequence[str], address: str, key: str, sample: Sample) -> None:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    names = {
        "OPENAI_BASE_URL": address,
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": address.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": key,
    }
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **names},
        start_new_session=True,
    )
    task = {"prompt": sample.prompt, "label": sample.label, "metadata": sample.metadata}
    try:
        out, err = await process.communicate(json.dumps(task, default=str).encode())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    sample.metadata["agent_output"] = out[-_SHOWN:].decode(errors="replace")
    if process.returncode:
        end = err[-2000:].decode(errors="replace").strip()
        raise AgentError(f"{words[0]} ended with exit code {process.returncode}: {end}")
