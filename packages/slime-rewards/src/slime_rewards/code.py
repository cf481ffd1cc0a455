"""Programs are run against tests: ``--rm-type code``.

Each run is a process of its own that may neither start processes, send signals, open sockets nor
change files, within limits of time, memory and output; what it prints is all that leaves it.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from slime_rewards import sandbox
from slime_rewards.readable import readable

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_LARGEST_OUTPUT = 8 << 20
_MEMORY = 1 << 30
_CASE_S = 4.0
_UNCONFINED = 77
_DESCRIPTORS = 4096


def grade(response: str, label: str | None, metadata: dict[str, Any]) -> float:
    """1 where the last Python block of the response passes every test, else 0.

    The tests are ``metadata["tests"]``, or the label as JSON or text: a list of
    ``{"input": ..., "output": ...}`` (standard input and output), ``{"inputs": [...], "outputs":
    [...]}``, ``{"asserts": [...]}``, or Python with asserts. A test has ``metadata["timeout"]``
    seconds, 4 by default; the deadline of the worker holds for all of them.

    Raises:
        ValueError: there are no tests, or they have none of these forms.
    """
    program = extract(response)
    tests, timeout = metadata.get("tests"), metadata.get("timeout")
    asserts, cases = read_tests(label if tests is None else tests)
    seconds = _CASE_S if timeout is None else float(timeout)
    if not program.strip():
        return 0.0
    if asserts is not None and not _passes(program, asserts, seconds):
        return 0.0
    return float(all(_answers(program, given, wanted, seconds) for given, wanted in cases))


def extract(response: str) -> str:
    """The last fenced block behind the thoughts; all of the text where there is none."""
    text = response.rpartition("</think>")[2]
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def read_tests(tests: object) -> tuple[str | None, list[tuple[str, str]]]:
    """Python with asserts, if any, and pairs of input and expected output; one of them at least.

    Raises:
        ValueError: there are no tests, or they have none of the forms of ``grade``.
    """
    asserts, cases = _read_tests(tests)
    if not cases and not (asserts or "").strip():
        raise ValueError(f"no tests in {tests!r:.100}: every program would pass")
    for number, texts in enumerate(cases, start=1):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"test {number} is {texts!r:.100}: input and output are text, what a program reads "
                "and prints; test functions with {'asserts'}"
            )
    return asserts, cases


def _read_tests(tests: object) -> tuple[str | None, list[tuple[Any, Any]]]:
    given = _parsed(tests) if isinstance(tests, str) else tests
    match given:
        case {"asserts": str(lines)}:
            return lines, []
        case {"asserts": lines}:
            return "\n".join(lines), []
        case {"inputs": inputs, "outputs": outputs}:
            return None, list(zip(inputs, outputs, strict=True))
        case [{"input": _, "output": _}, *_] if all(map(_is_case, given)):
            return None, [(case["input"], case["output"]) for case in given]
        case [str(), *_] if all(isinstance(line, str) for line in given):
            return "\n".join(given), []
        case _:
            raise ValueError(
                f"no tests in {tests!r:.100}: give metadata['tests'] or a label that is a list of "
                "{'input', 'output'}, {'inputs', 'outputs'}, {'asserts'} or Python with asserts"
            )


def _parsed(text: str) -> object:
    """JSON, or else Python with asserts."""
    with contextlib.suppress(json.JSONDecodeError):
        if isinstance(found := json.loads(text), dict | list):
            return found
    return {"asserts": [text]} if text.strip() else None


def _is_case(item: object) -> bool:
    return isinstance(item, dict) and {"input", "output"} <= item.keys()


def _passes(program: str, asserts: str, seconds: float) -> bool:
    """Whether program and asserts run to their end; leaving early is no way to pass."""
    done = secrets.token_hex(16)

    def run() -> None:
        space: dict[str, Any] = {"__name__": "solution"}
        exec(compile(program, "solution", "exec"), space)
        exec(compile(asserts, "tests", "exec"), space)
        os.write(1, f"\n{done}".encode())

    output = _output(run, b"", seconds)
    return output is not None and output.endswith(done.encode())


def _answers(program: str, given: str, wanted: str, seconds: float) -> bool:
    def run() -> None:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "solution", "exec"), space)

    output = _output(run, given.encode(), seconds)
    return output is not None and _same(output.decode(errors="replace"), wanted)


def _same(output: str, wanted: str) -> bool:
    """Lines without blanks at their ends, then words, numbers by value."""
    if [line.rstrip() for line in output.rstrip().splitlines()] == [
        line.rstrip() for line in wanted.rstrip().splitlines()
    ]:
        return True
    words, expected = output.split(), wanted.split()
    return len(words) == len(expected) and all(map(_close, words, expected))


def _close(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if "." not in expected:
        return False
    try:
        return abs(float(word) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
    except ValueError:
        return False


def _output(run: Callable[[], None], given: bytes, seconds: float) -> bytes | None:
    """What ``run`` prints in a process of its own; None where it fails or is late."""
    deadline = time.monotonic() + seconds
    fed = os.memfd_create("stdin")
    read, written = os.pipe()
    try:
        with open(fed, "wb", closefd=False) as stream:
            stream.write(given)
        os.lseek(fed, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _run_and_exit(run, fed, written)
        os.close(written)
        output = _drained(read, deadline)
        status = _ended(pid, deadline if output is not None else 0.0)
    finally:
        os.close(fed)
        os.close(read)
    if status == _UNCONFINED:
        raise OSError("the kernel has no filter of system calls: programs are not run without one")
    return output if status == 0 else None


def _drained(read: int, deadline: float) -> bytes | None:
    """All that comes out of ``read``; None where that is late or too much."""
    output = bytearray()
    while len(output) <= _LARGEST_OUTPUT:
        if not readable(read, deadline - time.monotonic()):
            return None
        piece = os.read(read, 1 << 16)
        if not piece:
            return bytes(output)
        output += piece
    return None


def _ended(pid: int, deadline: float) -> int:
    """Exit code of a process, killed when it does not end by itself."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run_and_exit(run: Callable[[], None], fed: int, written: int) -> NoReturn:
    status = 1
    try:
        sandbox.die_with_parent(signal.SIGKILL)
        os.dup2(fed, 0)
        os.dup2(written, 1)
        os.closerange(3, _DESCRIPTORS)
        os.chdir("/")
        sandbox.limit(sandbox.Limits(memory_bytes=_MEMORY, file_bytes=0))
        if not sandbox.confine(strict=True):
            os._exit(_UNCONFINED)
        with open(0, encoding="utf-8") as sys.stdin, open(1, "w", encoding="utf-8") as sys.stdout:
            try:
                run()
                status = 0
            except SystemExit as stop:
                status = int(stop.code not in (None, 0))
            sys.stdout.flush()
    finally:
        os._exit(status)
