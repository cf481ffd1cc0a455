"""An engine and the router as parts that can be lost and started again."""

import logging
import threading
from collections.abc import Callable

from slime_core.errors import EngineError

from slime_sglang.fleet.asking import status_of
from slime_sglang.fleet.router import Router
from slime_sglang.fleet.routing import Routing
from slime_sglang.processes.supervise import keep_log, last_words
from slime_sglang.server.launch import Engine, EngineSpec, Launch, launch
from slime_sglang.weights.session import EngineTarget

logger = logging.getLogger(__name__)

_ROOM_S = 1.0


class EnginePart:
    """One engine of a run, whichever process it is at the moment."""

    kind = "engine"

    def __init__(
        self,
        spec: EngineSpec,
        ready_timeout_s: float,
        *,
        serves_at_once: bool = False,
        launch: Launch = launch,
    ) -> None:
        """``serves_at_once``: its weights are those that it starts with.

        ``launch`` starts it where it runs, also again.
        """
        self.spec, self._launch = spec, launch
        self.serves_at_once = serves_at_once
        self.name = spec.name
        self.engine = Engine(spec, launch)
        self.is_up = True
        self.quiet = False
        """Whether it is given weights: it is paused then and generates nothing."""
        self.lends = False
        """Whether some of its memory is in use by others: it cannot generate then."""
        self._asked = threading.Lock()
        """Held while a check is on its way to it."""
        self.room = threading.Event()
        """Whether there is memory to start it."""
        self.room.set()
        self._changing = threading.Lock()
        """Held while ``is_up`` changes, and while a process for which there is room is begun."""
        self._is_given_up = False
        """Whether the process that was being started was ended, to make room."""
        self.ended = False
        self.leave: Callable[[str], None] = _nobody
        """Called with its address when it is lost."""
        self.join: Callable[[str], None] = _nobody
        """Called with its address when it is back, where it serves at once."""
        self._ready_timeout_s = ready_timeout_s

    @property
    def pid(self) -> int | None:
        """SGLang's main process."""
        return self.engine.process.command_pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.engine.process.exit_code

    @property
    def last_words(self) -> str:
        """Where its log is and how it ends."""
        return last_words(self.engine.process)

    @property
    def url(self) -> str:
        """Where it listens now."""
        return self.engine.url

    @property
    def target(self) -> EngineTarget:
        """What a publish needs to know of it."""
        return EngineTarget(self.engine.url, self.engine.num_ranks, self.spec.machine)

    def answers(self, timeout_s: float) -> bool:
        """Whether it generates, or, where it may not now, none of its processes is stopped.

        One that is paused while it is asked has ``timeout_s`` again for the other question.
        """
        with self._asked:
            if not self._may_not_generate and self._says("/health_generate", timeout_s):
                return True
        return self._may_not_generate and self._is_there(timeout_s)

    @property
    def _may_not_generate(self) -> bool:
        return self.quiet or self.lends

    def finish_check(self) -> None:
        """Return when no check generates: an engine without weights would end at it.

        Comes after ``lends`` was set, so that no other begins; takes as long as one may.
        """
        with self._asked:
            pass

    def _is_there(self, timeout_s: float) -> bool:
        return not self.engine.process.is_stopped and self._says("/model_info", timeout_s)

    def _says(self, path: str, timeout_s: float) -> bool:
        """Whether it answers with success within ``timeout_s``; known at once when it ends."""
        status = status_of(f"{self.engine.url}{path}", timeout_s)
        return status is not None and 200 <= status < 300

    def make_room(self) -> None:
        """None is started until there is ``room``; one that is being started is ended."""
        self.room.clear()
        with self._changing:
            if not self.is_up:
                self._is_given_up = True
                self.engine.kill()

    def start_again(self) -> None:
        """Kill what is left and return when a new process generates, with its first weights."""
        with self._changing:
            self.is_up = False
        self.leave(self.engine.url)
        self.engine.kill()
        keep_log(self.engine.process.log_path)
        while not self._is_started():
            logger.info("%s is started again later: its memory is wanted", self.name)
        if self.serves_at_once:
            self.join(self.engine.url)

    def _is_started(self) -> bool:
        """Whether a new process is up; False where ``make_room`` came before it was.

        Raises:
            EngineError: it did not come up though it had room, or nobody needs it any more.
        """
        while not (self.room.wait(_ROOM_S) or self.ended):
            pass
        self._check_needed()
        with self._changing:
            if not self.room.is_set():
                return False
            self._is_given_up = self.quiet = False
            self.engine = Engine(self.spec, self._launch)
        try:
            self._check_needed()  # ``stop`` may have ended the one before
        except EngineError:
            self.engine.stop()
            raise
        try:
            self.engine.wait_ready(self._ready_timeout_s)
        except EngineError:
            if not self._is_given_up:
                raise
        with self._changing:
            self.is_up = not self._is_given_up
        return self.is_up

    def _check_needed(self) -> None:
        if self.ended:
            raise EngineError(f"{self.name} is not needed any more")

    def stop(self) -> None:
        """End it."""
        self.ended = True
        self.engine.stop()


class RouterPart:
    """The run's own router."""

    kind = "router"
    serves_at_once = True

    def __init__(self, router: Router, routing: Routing, name: str = "router") -> None:
        self._router, self._routing = router, routing
        self.name = name

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._router.process.command_pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._router.process.exit_code

    @property
    def last_words(self) -> str:
        """Where its log is and how it ends."""
        return last_words(self._router.process)

    def answers(self, timeout_s: float) -> bool:
        """Whether it says anything."""
        return self._router.members.answers(timeout_s)

    def start_again(self) -> None:
        """Kill what is left; the new one has the same address and the same engines."""
        self._routing.restart()


def _nobody(url: str) -> None:
    """Nobody has to know."""
