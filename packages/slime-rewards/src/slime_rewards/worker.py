"""The processes behind ``workers``: a nursery, and the workers it forks.

The nursery has imported what graders need and is asked over a socket to start and to end workers,
so a replacement is there within milliseconds. Only the nursery kills and reaps, hence no process
number is used after it was freed. Each worker leads a process group that it cannot leave, answers
one JSON line with another, and ends with the nursery, which ends with its parent.
"""

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from slime_rewards import graders, sandbox
from slime_rewards.verdict import Grade, checked

_LARGEST_ANSWER = 1 << 20
_LARGEST_TRACEBACK = 20_000


def main() -> None:
    """Start and end workers until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    logging.disable(logging.WARNING)  # math-verify warns on every call without its own time limit
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = sandbox.Limits(**json.loads(sys.argv[2]))
    graders.preload()
    gc.freeze()
    alive: set[int] = set()
    try:
        _serve(control, limits, alive)
    finally:
        for pid in alive:
            _end(pid)


def _serve(control: socket.socket, limits: sandbox.Limits, alive: set[int]) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        request = json.loads(message)
        if request["do"] == "start":
            pid = _start(control, descriptors[0], limits, trusted=request["trusted"])
            os.close(descriptors[0])
            alive.add(pid)
            answer = {"pid": pid}
        else:
            alive.discard(request["pid"])
            answer = {"status": _end(request["pid"])}
        control.sendall(json.dumps(answer).encode())


def _end(pid: int) -> int:
    """Kill a worker's whole process group; its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _start(
    control: socket.socket, descriptor: int, limits: sandbox.Limits, *, trusted: bool
) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        sandbox.die_with_parent(signal.SIGKILL)
        control.close()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead
        sandbox.limit(limits)
        if trusted:
            sandbox.hide_memory()  # what it runs must not find the tests
        else:
            sandbox.confine()
        _work(socket.socket(fileno=descriptor))
        status = 0
    finally:
        os._exit(status)
    return 0


def _work(channel: socket.socket) -> None:
    """Answer until the input ends."""
    functions: dict[str, Grade] = {}
    with channel, channel.makefile("rwb") as stream:
        for line in stream:
            answer = _answer(json.loads(line), functions)
            text = json.dumps(answer)
            if len(text) > _LARGEST_ANSWER:
                text = json.dumps({"error": f"the grader's answer has {len(text)} characters"})
            stream.write(text.encode() + b"\n")
            stream.flush()


def _answer(request: dict[str, Any], functions: dict[str, Grade]) -> dict[str, Any]:
    """A reward or a traceback; the boundary to code that may raise anything."""
    name = request["grader"]
    try:
        if name not in functions:
            functions[name] = graders.find(name)
        if request["load"]:
            return {"reward": None}
        start = time.perf_counter()
        value = functions[name](request["response"], request["label"], request["metadata"])
        reward = checked(value)
        json.dumps(reward, allow_nan=False)
        return {"reward": reward, "seconds": time.perf_counter() - start}
    except MemoryError:
        return {"error": f"{traceback.format_exc()[-_LARGEST_TRACEBACK:]}(memory is limited)"}
    except BaseException:
        return {"error": traceback.format_exc()[-_LARGEST_TRACEBACK:]}


if __name__ == "__main__":
    main()
