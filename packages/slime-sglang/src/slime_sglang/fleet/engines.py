"""All engines of a run and the router in front of them."""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slime_core.errors import EngineError
from slime_core.residency import Holding

from slime_sglang.fleet.external import ExternalPart
from slime_sglang.fleet.health import HealthSpec, Part, Record, Watch
from slime_sglang.fleet.parts import EnginePart, RouterPart
from slime_sglang.fleet.router import Members, Router
from slime_sglang.fleet.routing import Routing
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.fleet.starting import Start, join_router
from slime_sglang.server.launch import Engine
from slime_sglang.server.launcher import NO_LAUNCHERS, Launchers
from slime_sglang.weights.session import EngineTarget, FleetStatus

logger = logging.getLogger(__name__)


def _nothing(event: str, **fields: Any) -> None:
    """Nobody keeps a record."""


class Engines:
    """Servers and router of one run; belongs to the process that starts them.

    Whatever ends that process ends them too.
    """

    def __init__(
        self,
        spec: FleetSpec,
        health: HealthSpec | None = None,
        record: Record = _nothing,
        launchers: Launchers = NO_LAUNCHERS,
    ) -> None:
        """With ``health``, parts that are lost are started again and ``record`` hears of it.

        ``launchers`` start the engines of each machine, where they are on several.
        """
        self.spec = spec
        self._launchers = launchers
        self._health = health
        self._record = record
        self._parts: list[EnginePart | ExternalPart] = []
        self._router: Router | None = None
        self._routing: Routing | None = None
        self._watch: Watch | None = None

    def start(self) -> None:
        """Start everything at once; on any failure stop everything and raise ``EngineError``."""
        start = Start(self.spec, self._launchers, self._record)
        try:
            if self.spec.external:
                self._parts += start.find_engines()
            else:
                for index in range(self.spec.num_engines):
                    self._parts.append(start.begin_engine(index))
                start.await_engines([part.engine for part in self._own_parts])
            if self._is_router_ours:
                self._router = start.own_router(self.urls)
            else:
                join_router(self.router_url, self.urls)
            self._start_watch()
        except BaseException:
            self.stop()
            raise
        logger.info("%d engines ready in %.1f s", len(self._parts), start.seconds)

    def _start_watch(self) -> None:
        if self._health is None:
            return
        members = Members(self.router_url) if self._router is None else self._router.members
        self._routing = routing = Routing(members, self._router)
        routing.begin(self.urls)
        for part in self._parts:
            part.leave, part.join = routing.remove, routing.add
        parts: list[Part] = [*self._own_parts]
        if self._router is not None:
            parts.append(RouterPart(self._router, routing, f"{self.spec.prefix}router"))
        self._watch = Watch(parts, self._health, self._record)
        self._watch.start()

    def _leave_router(self) -> None:
        """Have a router that goes on without the run send nothing to engines that end with it."""
        if self._is_router_ours or not self._own_parts:
            return
        members = Members(self.router_url)
        try:
            for part in self._own_parts:
                members.remove(part.url)
        except EngineError as error:
            logger.warning("%s", error)
        finally:
            members.close()

    @property
    def _is_router_ours(self) -> bool:
        """Whether the run starts it; otherwise it runs already."""
        return self.spec.sglang.sglang_router_ip is None

    @property
    def _own_parts(self) -> list[EnginePart]:
        """Those that the run started."""
        return [part for part in self._parts if isinstance(part, EnginePart)]

    @property
    def urls(self) -> list[str]:
        """The address of every engine that is up."""
        return [part.url for part in self._parts if part.is_up]

    @property
    def targets(self) -> tuple[EngineTarget, ...]:
        """What weight receivers need to know about the engines; crosses processes."""
        return tuple(part.target for part in self._parts if part.is_up)

    @property
    def router_url(self) -> str:
        """Where requests go."""
        config = self.spec.sglang
        if not self._is_router_ours:
            return f"http://{config.sglang_router_ip}:{config.sglang_router_port or 30000}"
        assert self._router is not None, "the engines have not been started"
        return self._router.url

    def check_alive(self) -> None:
        """Raise ``EngineError`` with the end of the log of the first process that has ended.

        With ``health``, of the run's own only when one was lost too often.
        """
        watched = self._watch is not None
        if self._watch is not None and self._watch.problem is not None:
            raise EngineError(self._watch.problem)
        for part in self._parts:
            if not (watched and isinstance(part, EnginePart)):
                part.engine.check_alive()
        if self._router is not None and not watched:
            self._router.check_alive()

    def status(self) -> FleetStatus:
        """Who serves and who waits for weights; raises as ``check_alive`` does."""
        self.check_alive()
        watch, routing = self._watch, self._routing
        assert watch is not None, "asked of engines that are watched"
        assert routing is not None, "made with the watch"
        serving = routing.serving
        up = [part for part in self._parts if part.is_up]
        return FleetStatus(
            num_losses=watch.num_losses,
            serving=tuple(part.target for part in up if part.url in serving),
            waiting=tuple(part.target for part in up if part.url not in serving),
        )

    def publishing(self, urls: Sequence[str]) -> None:
        """These engines are given weights from now on, until ``admit``: they are paused."""
        for part in self._parts:
            if part.url in urls:
                part.quiet = True

    def admit(self, urls: Sequence[str]) -> None:
        """These engines have the current weights: send them requests.

        Raises:
            EngineError: the router does not take one of them.
        """
        for part in self._parts:
            if part.url in urls and part.is_up and self._routing is not None:
                self._routing.add(part.url)
                part.quiet = False
                if self._watch is not None and isinstance(part, EnginePart):
                    self._watch.recovered(part)

    def unanswered(self, urls: Sequence[str], why: str) -> None:
        """These did not answer a publish in time: they count as lost, whatever else they answer."""
        for part in self._own_parts:
            if part.url in urls and part.is_up and self._watch is not None:
                self._watch.accuse(part, why)

    def progress(self) -> None:
        """A rollout is finished: losses so far did not keep the run from getting on."""
        if self._watch is not None:
            self._watch.progress()

    def may_recover(self, since: float) -> bool:
        """Whether what has failed since ``since`` (monotonic) may be a loss that is repaired."""
        return self._watch is not None and self._watch.may_recover(since)

    def hold(self, what: Holding) -> None:
        """Keep so much in memory, on every engine that is up; none may have anything to do.

        An engine that is lost is not started again while engines hold nothing. One that does not
        do as it is told is ended, if lost engines are started again: others need its memory.
        """
        parts = self._own_parts
        for part in parts:
            part.lends = part.lends or what != "everything"
            if what == "nothing":
                part.make_room()
        up = [part for part in parts if part.is_up]
        with ThreadPoolExecutor(max(1, len(up))) as pool:
            found = list(pool.map(functools.partial(_held, what), up))
        for engine, error in found:
            if error is not None and self._watch is None:
                raise error
            if error is not None:
                engine.kill()
        for part in parts:
            part.lends = what != "everything"
            if what != "nothing":
                part.room.set()

    def stop(self) -> None:
        """End every process that was started; safe to call twice."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()
        self._leave_router()
        parts: list[Router | EnginePart | ExternalPart] = [*self._parts]
        if self._router is not None:
            parts.insert(0, self._router)
        self._parts, self._router = [], None
        if parts:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(_stop, parts))
        if watch is not None:
            watch.join()  # waits: with a timeout of its own
        if self._routing is not None:
            self._routing.close()


def _held(what: Holding, part: EnginePart) -> tuple[Engine, EngineError | None]:
    """Which engine was told, as one that is lost may be replaced meanwhile, and what was wrong."""
    engine = part.engine
    try:
        if part.lends:
            part.finish_check()
        engine.hold(what)
    except EngineError as error:
        logger.warning("%s does not hold %s: %s", part.name, what, error)
        return engine, error
    return engine, None


def _stop(part: Router | EnginePart | ExternalPart) -> None:
    part.stop()
