"""sglang-router in front of the engines, ready when it knows every one of them."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from slime_core.errors import EngineError

from slime_sglang.command_line import to_words
from slime_sglang.ports import PortLease
from slime_sglang.supervise import Command, Supervised

_PROBE_S = 5.0


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


class Router:
    """A running sglang-router; owned by the process that started it."""

    def __init__(self, spec: RouterSpec) -> None:
        self.spec = spec
        self._lease = PortLease(2, spec.host)
        free, metrics_port = self._lease.ports
        port = spec.port or free
        self.url = f"http://{spec.host}:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=_PROBE_S, trust_env=False)
        command = Command(
            name="router",
            argv=command_line(spec, port=port, metrics_port=metrics_port),
            log_path=spec.log_dir / "router.log",
            env=dict(os.environ),
        )
        self.process = Supervised(command)

    def healthy_workers(self) -> set[str]:
        """URLs of the engines it would send a request to now."""
        try:
            reply = self._http.get("/workers")
            workers: list[dict[str, Any]] = reply.json()["workers"] if reply.is_success else []
        except (httpx.HTTPError, ValueError, KeyError):
            return set()
        return {str(worker["url"]) for worker in workers if worker.get("is_healthy")}

    def wait_ready(self, deadline_s: float) -> None:
        """Return when every engine is known and healthy; ``EngineError`` naming those missing."""
        expected = set(self.spec.worker_urls)
        try:
            self.process.wait_until(lambda: expected <= self.healthy_workers(), deadline_s)
        except EngineError as error:
            absent = ", ".join(sorted(expected - self.healthy_workers()))
            raise EngineError(f"{error}\nengines it does not serve: {absent}") from error

    def check_alive(self) -> None:
        """Raise ``EngineError`` with the end of its log if it has ended."""
        self.process.check()

    def stop(self) -> None:
        """End it."""
        self._http.close()
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
    return [sys.executable, "-m", "slime_sglang.router_main", *words]
