"""sglang-router in front of the engines, ready when it knows every one of them."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from slime_core.errors import EngineError
from slime_core.processes.proxies import without_proxies

from slime_sglang.fleet.asking import status_of
from slime_sglang.processes.command_line import to_words
from slime_sglang.processes.ports import PortLease
from slime_sglang.processes.supervise import Command, Supervised, check, keep_log, wait_until

_PROBE_S = 5.0
_CHANGE_S = 10.0
_CHANGE_POLL_S = 0.05
_FAILURES = (httpx.HTTPError, RuntimeError)
"""Of a request; the latter where another thread has closed the client, as ``stop`` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """What the router serves and how."""

    worker_urls: Sequence[str]
    log_dir: Path
    router: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """RouterArgs given by the user."""
    request_timeout_s: int = 14400
    host: str = "127.0.0.1"
    port: int | None = None
    """None takes a free one."""


class Members:
    """The engines that a router, ours or another, sends requests to."""

    def __init__(self, router_url: str) -> None:
        self._url = router_url
        self._http = httpx.Client(base_url=router_url, timeout=_PROBE_S, trust_env=False)

    def answers(self, timeout_s: float) -> bool:
        """Whether the router says anything within ``timeout_s``."""
        return status_of(f"{self._url}/health", timeout_s) is not None

    def healthy(self) -> set[str]:
        """URLs of the engines that get requests now."""
        try:
            return {str(each["url"]) for each in self._workers() if each.get("is_healthy")}
        except (*_FAILURES, ValueError, KeyError):
            return set()

    def add(self, url: str) -> None:
        """Send requests to the engine ``url`` too; returns when the router does so.

        Raises:
            EngineError: the router does not take it.
        """
        deadline, problem = time.monotonic() + _CHANGE_S, "it knows it and sends it nothing"
        is_told = False
        while url not in self.healthy():
            try:
                # Told once: each time it would have the engine generate to see whether it does,
                # also after this has returned, when the engine may have lent its memory.
                if not is_told and not any(str(each["url"]) == url for each in self._workers()):
                    self._http.post("/workers", json={"url": url}).raise_for_status()
                is_told = True
            except (*_FAILURES, ValueError, KeyError) as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"the router did not take up the engine {url} in {_CHANGE_S:.0f} s: {problem}"
                )
            time.sleep(_CHANGE_POLL_S)

    def remove(self, url: str) -> None:
        """Send it nothing more.

        Raises:
            EngineError: the router was not told.
        """
        try:
            for each in self._workers():
                if str(each["url"]) == url:
                    self._http.delete(f"/workers/{each['id']}").raise_for_status()
        except (*_FAILURES, ValueError, KeyError) as error:
            raise EngineError(f"the router was not told that {url} is gone: {error!r}") from error

    def _workers(self) -> list[dict[str, Any]]:
        return self._http.get("/workers").raise_for_status().json()["workers"]

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()


class Router:
    """A running sglang-router; owned by the process that started it."""

    def __init__(self, spec: RouterSpec) -> None:
        self.spec = spec
        with ExitStack() as unless_started:
            self._lease = unless_started.enter_context(PortLease(2, spec.host))
            free, metrics_port = self._lease.ports
            port = spec.port or free
            self._ports = port, metrics_port
            self.url = f"http://{spec.host}:{port}"
            self.members = Members(self.url)
            unless_started.callback(self.members.close)
            self.process = Supervised(self._command())
            unless_started.pop_all()

    def _command(self) -> Command:
        port, metrics_port = self._ports
        return Command(
            name="router",
            argv=command_line(self.spec, port=port, metrics_port=metrics_port),
            log_path=self.spec.log_dir / "router.log",
            env=without_proxies(os.environ),
        )

    def start_again(self, wanted: Callable[[], Sequence[str]], deadline_s: float = 60.0) -> None:
        """Kill it and serve the engines ``wanted`` at the same address.

        One of them that has ended without anybody knowing is waited for until ``wanted`` is without
        it, which somebody else sees to.

        Raises:
            EngineError: it does not serve them.
        """
        self.process.kill()
        self.spec = replace(self.spec, worker_urls=tuple(wanted()))
        keep_log(self.process.log_path)
        self.process = Supervised(self._command())
        self._wait_for(wanted, deadline_s)

    def wait_ready(self, deadline_s: float) -> None:
        """Return when every engine is known and healthy; ``EngineError`` naming those missing."""
        self._wait_for(lambda: self.spec.worker_urls, deadline_s)

    def _wait_for(self, wanted: Callable[[], Sequence[str]], deadline_s: float) -> None:
        try:
            wait_until(self.process, lambda: self._serves(wanted), deadline_s)
        except EngineError as error:
            absent = ", ".join(sorted({*wanted()} - self.members.healthy()))
            raise EngineError(f"{error}\nengines it does not serve: {absent}") from error

    def _serves(self, wanted: Callable[[], Sequence[str]]) -> bool:
        return self.members.answers(_PROBE_S) and {*wanted()} <= self.members.healthy()

    def check_alive(self) -> None:
        """Raise ``EngineError`` with the end of its log if it has ended."""
        check(self.process)

    def stop(self) -> None:
        """End it."""
        self.members.close()
        self.process.stop()
        self._lease.close()


def start_router(spec: RouterSpec, *, deadline_s: float = 60.0) -> Router:
    """A router that serves every engine of ``spec``."""
    router = Router(spec)
    try:
        router.wait_ready(deadline_s)
    except BaseException:
        router.stop()
        raise
    return router


def command_line(spec: RouterSpec, *, port: int, metrics_port: int) -> list[str]:
    """The words of the router's command line: defaults, the user's values, then the run's.

    Circuit breaker and health checks are off by default, because an engine that is paused for a
    weight update is not broken; the run itself notices when one dies.
    """
    defaults = {
        "prometheus_host": spec.host,
        "prometheus_port": metrics_port,
        "disable_circuit_breaker": True,
        "disable_health_check": True,
        "log_level": "warn",
    }
    ours = {
        "host": spec.host,
        "port": port,
        "worker_urls": list(spec.worker_urls),
        "request_timeout_secs": spec.request_timeout_s,
    }
    words = to_words({**defaults, **spec.router, **ours}, "router_flags")
    return [sys.executable, "-m", "slime_sglang.fleet.router_main", *words]
