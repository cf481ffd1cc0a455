"""Start what a fleet consists of, and say of each part when it is up."""

import functools
import time

from slime_core.errors import EngineError

from slime_sglang.fleet.external import ExternalPart, discover
from slime_sglang.fleet.health import Record
from slime_sglang.fleet.parts import EnginePart
from slime_sglang.fleet.router import Members, Router, RouterSpec, start_router
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.processes.ports import require_free
from slime_sglang.processes.supervise import check, not_ready
from slime_sglang.server.launch import Engine, Launch, launch
from slime_sglang.server.launcher import Launchers, launch_by

_POLL_S = 0.1
_ROUTER_S = 60.0


class Start:
    """One start of a fleet, from the moment when this is made."""

    def __init__(self, spec: FleetSpec, launchers: Launchers, record: Record) -> None:
        """``record`` hears of each part that is up."""
        self._spec, self._launchers, self._record = spec, launchers, record
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def find_engines(self) -> list[ExternalPart]:
        """Those that somebody else runs; raises ``EngineError``."""
        parts = discover(self._spec.external, self._spec.model_path)
        self._tell(f"{len(parts)} engines found")
        return parts

    def begin_engine(self, index: int) -> EnginePart:
        """One of the run's own; ``await_engines`` returns when it is ready."""
        spec = self._spec.engine(index)
        return EnginePart(
            spec,
            self._spec.ready_timeout_s,
            serves_at_once=self._spec.fixed_weights,
            launch=self.launch_on(spec.machine),
        )

    def launch_on(self, machine: int) -> Launch:
        """What starts servers there."""
        if not self._spec.machines:
            return launch
        return functools.partial(launch_by, self._launchers[machine])

    def await_engines(self, engines: list[Engine]) -> None:
        """Return when all of them generate; ``EngineError`` for the first that does not."""
        deadline = self._began + self._spec.ready_timeout_s
        waiting = engines
        while waiting:
            for engine in engines:
                check(engine.process, "starting")
            before = len(engines) - len(waiting)
            waiting = [engine for engine in waiting if not engine.client.is_up()]
            for number in range(before, len(engines) - len(waiting)):
                self._tell(f"{self._spec.prefix}engine {number + 1} of {len(engines)} up")
            if waiting and time.monotonic() > deadline:
                raise not_ready(waiting[0].process, self._spec.ready_timeout_s)
            time.sleep(_POLL_S)
        for engine in engines:
            engine.wait_ready(max(1.0, deadline - time.monotonic()))

    def own_router(self, urls: list[str]) -> Router:
        """A new router that serves the engines at ``urls``; raises ``EngineError``."""
        config = self._spec.sglang
        if config.sglang_router_port is not None:
            require_free(config.sglang_router_port, "--sglang-router-port")
        began = time.monotonic()
        spec = RouterSpec(
            worker_urls=urls,
            log_dir=self._spec.log_dir,
            router=config.router,
            request_timeout_s=config.sglang_router_request_timeout_secs,
            port=config.sglang_router_port,
        )
        router = start_router(spec, deadline_s=_ROUTER_S)
        self._tell(f"{self._spec.prefix}router up", began)
        return router

    def _tell(self, what: str, began: float | None = None) -> None:
        seconds = time.monotonic() - (self._began if began is None else began)
        self._record("started", what=what, seconds=round(seconds, 3))


def join_router(url: str, engines: list[str]) -> None:
    """Have a router that already runs serve ``engines`` too; raises ``EngineError``."""
    members = Members(url)
    try:
        for engine in engines:
            members.add(engine)
    except EngineError as error:
        raise EngineError(
            f"the router at {url} (--sglang-router-ip, --sglang-router-port): {error}"
        ) from error
    finally:
        members.close()
