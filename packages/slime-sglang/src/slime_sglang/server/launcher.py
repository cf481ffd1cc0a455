"""Start, look at and end the servers of a machine from another one.

A ``Launcher`` is an object in a process on the machine where engines run; that process is their
parent, and they end with it. ``Launched`` is one of its servers as the process with the fleet sees
it. Whatever carries calls between the two (``Caller``) is the app's.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol
from uuid import uuid4

from slime_core.errors import EngineError, SlimeError
from slime_core.processes.this_machine import network_address

from slime_sglang.processes.supervise import Supervised
from slime_sglang.server.launch import EngineSpec, launch

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_START_S, _LOOK_S, _END_S = 300.0, 30.0, 120.0
_KILLED = 137
"""Exit code of a server that was ended, or whose launcher is gone: it was killed with it."""


class Answer(Protocol):
    """A call under way."""

    def is_done(self) -> bool:
        """Whether ``result`` would return, or raise, at once."""
        ...

    def result(self, timeout_s: float) -> Any:
        """What the method returned; raises what it raised, or that its process is gone."""
        ...


class Caller(Protocol):
    """Calls methods of an object in another process, from any thread, several at once."""

    def call(self, method: str, *args: Any) -> Answer:
        """Start ``method`` over there."""
        ...


Launchers = Mapping[int, Caller]
"""By the number of the machine; none where engines are started by whoever owns them."""
NO_LAUNCHERS: Launchers = MappingProxyType({})


class Launcher:
    """The servers of one machine; its methods may be called from several threads at once.

    Each has a key that its caller made up. Calls may come in another order than they were made: one
    about a server that was ended and forgotten is answered as if it had been killed, and one that
    is ended before it is started is not started.
    """

    def __init__(self) -> None:
        self._servers: dict[str, Supervised] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        """Held while a server is entered, or its key among those that were ended."""

    def start(self, key: str, spec: EngineSpec) -> str:
        """Start a server that other machines reach; its address.

        Raises:
            EngineError: it was ended meanwhile, by a caller that waits no longer.
        """
        if key not in self._ended:
            url, process = launch(replace(spec, host=network_address()))
            with self._lock:
                if key not in self._ended:
                    self._servers[key] = process
                    return url
            process.kill()
        raise EngineError(f"engine {spec.name} was given up before it was started")

    def wait(self, key: str) -> int:
        """Return when it has ended, with its exit code."""
        process = self._servers.get(key)
        while process is not None:
            if (code := process.exit_code) is not None:
                return code
            time.sleep(_POLL_S)
        return _KILLED

    def look(self, key: str, what: Literal["command_pid", "is_stopped"]) -> Any:
        """A property of its process; None when it has been ended."""
        process = self._servers.get(key)
        return None if process is None else getattr(process, what)

    def end(self, key: str, how: Literal["stop", "kill"]) -> None:
        """End it and everything that it started, and forget it; may be called again."""
        with self._lock:
            self._ended.add(key)
            process = self._servers.get(key)
        if process is not None:
            getattr(process, how)()
            self._servers.pop(key, None)


class Launched:
    """``slime_sglang.processes.supervise.Running`` of another machine.

    Its log is on a file system that the machines share.
    """

    def __init__(self, caller: Caller, key: str, name: str, log_path: Path) -> None:
        self._caller, self._key = caller, key
        self.name, self.log_path = name, log_path
        self._end = caller.call("wait", key)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        if not self._end.is_done():
            return None
        try:
            return int(self._end.result(0))
        except SlimeError:
            return _KILLED

    @property
    def command_pid(self) -> int | None:
        """The command's own process id, on its machine; None when it has ended."""
        return self._ask("look", "command_pid", timeout_s=_LOOK_S)

    @property
    def is_stopped(self) -> bool:
        """Whether a process of the command is stopped (SIGSTOP), and so answers nobody."""
        return bool(self._ask("look", "is_stopped", timeout_s=_LOOK_S))

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, to what this command started; returns when all of it is gone."""
        self._ask("end", "stop", timeout_s=_END_S)

    def kill(self) -> None:
        """End it at once, whatever state it is in; returns when all of it is gone."""
        self._ask("end", "kill", timeout_s=_END_S)

    def _ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        """None where the launcher is gone, and everything that it started with it."""
        try:
            return self._caller.call(method, self._key, *args).result(timeout_s)
        except SlimeError as error:
            logger.warning("%s: %s", self.name, error)
            return None


def launch_by(caller: Caller, spec: EngineSpec) -> tuple[str, Launched]:
    """Have a server started over there; its address and its process.

    One that is not started in time is ended as soon as it is: nobody would know of it.

    Raises:
        EngineError: it was not started.
    """
    name, key = f"engine {spec.name}", uuid4().hex
    try:
        url: str = caller.call("start", key, spec).result(_START_S)
    except EngineError:
        raise
    except SlimeError as error:
        caller.call("end", key, "kill")  # not waited for: what did not answer may not do so now
        raise EngineError(f"{name} cannot be started on its machine: {error}") from error
    return url, Launched(caller, key, name, spec.log_dir / f"{spec.name}.log")
