"""Let an agent that knows nothing of training produce samples."""

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any, cast

from slime_core.types import Sample, Status

from slime_sglang.agents.execution import active
from slime_sglang.agents.session import LateError

Agent = Callable[[str, str, Sample], Awaitable[Any]]
"""(base_url, api_key, sample) -> None, a reward (number or dictionary), or the answer (text)."""

_SHOWN, _SHOWN_OF_ERROR = 65536, 2000
"""Bytes kept of what a command wrote."""


class AgentError(RuntimeError):
    """An agent's command ended with an error, or an agent did not speak to the model."""


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
    late = False
    try:
        work = _work(agent, endpoints.address(key), key, sample)
        result = await session.watch(work, timeout_s or execution.agents.timeout_s)
        _note(sample, result)
    except LateError:
        late = True
    finally:
        endpoints.close(key)
    if session.problem is not None:
        raise session.problem
    if not (late or session.num_requests):
        raise AgentError(
            "the agent ended without a request to the model: it has to use the address and the key "
            "that it is given (a command: OPENAI_BASE_URL and OPENAI_API_KEY, or ANTHROPIC_...)"
        )
    segments = session.samples(sample)
    for segment in segments if late else ():
        segment.status = Status.TRUNCATED
        segment.metadata["agent"] = "late"
    return segments[0] if len(segments) == 1 else segments


def _work(
    agent: Agent | str | Sequence[str], address: str, key: str, sample: Sample
) -> Awaitable[Any]:
    return agent(address, key, sample) if callable(agent) else _command(agent, address, key, sample)


def _note(sample: Sample, result: Any) -> None:
    if isinstance(result, str):
        sample.response = result
    elif isinstance(result, bool | int | float):
        sample.reward = float(result)
    elif isinstance(result, dict):
        sample.reward = cast("dict[str, Any]", result)


async def _command(command: str | Sequence[str], address: str, key: str, sample: Sample) -> None:
    """Run it to its end, and end with it what it started.

    Input and output are files: a process that it leaves behind may hold on to them, and much may
    be written of which only the end is kept.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command)
    names = {
        "OPENAI_BASE_URL": address,
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": address.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": key,
    }
    task = {"prompt": sample.prompt, "label": sample.label, "metadata": sample.metadata}
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(json.dumps(task, default=str).encode())
        given.seek(0)
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=given,
            stdout=out,
            stderr=err,
            env={**os.environ, **names},
            start_new_session=True,
        )
        try:
            await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        sample.metadata["agent_output"] = _end_of(out, _SHOWN)
        problem = _end_of(err, _SHOWN_OF_ERROR).strip()
    if process.returncode:
        raise AgentError(f"{words[0]} ended with exit code {process.returncode}: {problem}")


def _end_of(file: IO[bytes], most: int) -> str:
    """The last bytes of a file, as text."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - most))
    return file.read(most).decode(errors="replace")
