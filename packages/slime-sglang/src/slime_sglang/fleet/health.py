"""Watch over the parts of the generating side and start again what ends or hangs.

A part that ends is noticed within ``POLL_S``. One that hangs is noticed at most
``interval_s + timeout_s`` after its last answer: it is asked every ``interval_s`` seconds and has
``timeout_s`` to answer.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from slime_core.config.rollout import HealthConfig
from slime_core.errors import SlimeError

logger = logging.getLogger(__name__)

POLL_S = 0.1
_EXIT_S = 0.5
"""For the end of a process to be known, where its connections are gone already."""
_END_S = 30.0
"""For a watching thread to end; longer ones are killing a process meanwhile."""

Record = Callable[..., None]
"""``record(event, **fields)``, as of ``slime_core.processes.events.Events``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSpec:
    """When a part counts as lost, and how often it may be."""

    interval_s: float = 30.0
    timeout_s: float = 30.0
    first_wait_s: float = 0.0
    """A part that has just come up is not asked for so long; its end is noticed all the same."""
    max_restarts: int = 3
    """Of one part, without progress in between."""

    @classmethod
    def of(cls, config: HealthConfig) -> "HealthSpec | None":
        """As the command line has it; None leaves a loss to end the run."""
        if not config.use_fault_tolerance:
            return None
        return cls(
            interval_s=config.rollout_health_check_interval,
            timeout_s=config.rollout_health_check_timeout,
            first_wait_s=config.rollout_health_check_first_wait,
            max_restarts=config.max_engine_restarts,
        )

    @property
    def notice_s(self) -> float:
        """The longest that a hang goes unnoticed."""
        return self.interval_s + self.timeout_s


class Part(Protocol):
    """An engine or the router, whichever process it is at the moment."""

    @property
    def kind(self) -> str:
        """``engine`` or ``router``."""
        ...

    @property
    def name(self) -> str:
        """Which one."""
        ...

    @property
    def serves_at_once(self) -> bool:
        """Whether it does its work as soon as it is up; an engine needs weights first."""
        ...

    @property
    def pid(self) -> int | None:
        """The process that does the work; None when it has ended."""
        ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        ...

    @property
    def last_words(self) -> str:
        """Where its log is and how it ends."""
        ...

    def answers(self, timeout_s: float) -> bool:
        """Whether it does its work now."""
        ...

    def start_again(self) -> None:
        """Kill what is left and return when a new process answers; raises ``EngineError``."""
        ...


@dataclass(frozen=True, slots=True)
class _Loss:
    how: Literal["exit", "hang"]
    seconds: float
    """Since it was last known to live."""
    why: str = ""
    """Where somebody else found out."""


class Watch:
    """One thread per part; methods may be called from any thread."""

    def __init__(self, parts: Sequence[Part], spec: HealthSpec, record: Record) -> None:
        self._spec = spec
        self._record = record
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._losses: dict[str, list[str]] = {part.name: [] for part in parts}
        self._pids: dict[str, int | None] = {part.name: part.pid for part in parts}
        self._accused: dict[str, str] = {}
        self._down: dict[str, float] = {}
        self._whole_since = 0.0
        self._num_losses = 0
        self.problem: str | None = None
        """Why the generating side cannot go on."""
        self._threads = [
            threading.Thread(
                target=self._keep, args=(part,), name=f"watch {part.name}", daemon=True
            )
            for part in parts
        ]

    def start(self) -> None:
        """Begin to watch parts that are up."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Restart nothing from now on; ``join`` waits for the threads."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until no thread watches any more."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_END_S)

    @property
    def num_losses(self) -> int:
        """How often any part was lost."""
        return self._num_losses

    def accuse(self, part: Part, why: str) -> None:
        """``part`` did not do its work in time: it counts as hung, whatever it answers."""
        with self._lock:
            self._accused[part.name] = why

    def may_recover(self, since: float) -> bool:
        """Whether what has failed since ``since`` (monotonic) may be due to a loss being repaired.

        True as well as long as a hang may not have been noticed yet.
        """
        with self._lock:
            if self._down:
                return True
            begin = max(since, self._whole_since)
        return time.monotonic() - begin < self._spec.notice_s + _EXIT_S

    def progress(self) -> None:
        """Losses until now did not keep the run from getting on."""
        with self._lock:
            for losses in self._losses.values():
                losses.clear()

    def recovered(self, part: Part) -> None:
        """``part`` does its work again."""
        with self._lock:
            began = self._down.pop(part.name, None)
            self._whole_since = time.monotonic()
        if began is not None:
            seconds = time.monotonic() - began
            logger.info("%s is back after %.1f s", part.name, seconds)
            self._record("recovered", kind=part.kind, name=part.name, seconds=round(seconds, 3))

    def _keep(self, part: Part) -> None:
        try:
            self._announce(part)
            while (loss := self._wait_for_loss(part)) is not None:
                # Parts are ended once nothing is restarted any more: no loss then.
                if self._stopping.is_set() or not self._replace(part, loss):
                    return
                self._announce(part)
        except Exception as error:
            logger.exception("nobody watches %s any more", part.name)
            self.problem = f"watching {part.name} failed: {type(error).__name__}: {error}"

    def _announce(self, part: Part) -> None:
        with self._lock:
            self._accused.pop(part.name, None)  # that was the one before
        self._pids[part.name] = part.pid
        self._record("process", kind=part.kind, name=part.name, pid=part.pid)

    def _wait_for_loss(self, part: Part) -> _Loss | None:
        """None to stop."""
        answered = time.monotonic()
        unasked_s = self._spec.first_wait_s
        while not self._stopping.is_set():
            seen, due = time.monotonic(), time.monotonic() + unasked_s + self._spec.interval_s
            unasked_s = 0.0
            while (now := time.monotonic()) < due:
                if part.exit_code is not None:
                    return _Loss("exit", now - seen)
                if why := self._accused.get(part.name):
                    return _Loss("hang", now - answered, why)
                seen = now
                self._stopping.wait(POLL_S)
                if self._stopping.is_set():
                    return None
            if part.answers(self._spec.timeout_s):
                answered = time.monotonic()
            elif not self._stopping.wait(_EXIT_S):  # an end shows as no answer first
                seconds = time.monotonic() - answered
                return _Loss("hang" if part.exit_code is None else "exit", seconds)
        return None

    def _replace(self, part: Part, loss: _Loss) -> bool:
        """Start it again, as often as is allowed; whether it is up."""
        while self._may_restart(part, loss):
            began = time.monotonic()
            try:
                part.start_again()
            except SlimeError as error:
                if self._stopping.is_set():
                    return False
                logger.warning("%s did not start again: %s", part.name, error)
                loss = _Loss("exit", time.monotonic() - began)
                continue
            if part.serves_at_once:
                self.recovered(part)
            return True
        return False

    def _may_restart(self, part: Part, loss: _Loss) -> bool:
        code = part.exit_code
        silent = loss.why or "did not answer"
        ended = silent if code is None else f"ended with exit code {code}"
        seconds = round(loss.seconds, 3)
        pid = self._pids[part.name]
        with self._lock:
            self._num_losses += 1
            self._down.setdefault(part.name, time.monotonic())
            losses = self._losses[part.name]
            losses.append(f"{ended} ({seconds:.1f} s after its last sign of life)")
            allowed = len(losses) <= self._spec.max_restarts
            described = "; ".join(f"{number}. {each}" for number, each in enumerate(losses, 1))
        logger.warning("%s (process %s) %s", part.name, pid, ended)
        self._record(
            "lost", kind=part.kind, name=part.name, pid_lost=pid, how=loss.how, seconds=seconds
        )
        if not allowed:
            self.problem = (
                f"{part.name} was lost {len(losses)} times without a finished rollout in between "
                f"(--max-engine-restarts {self._spec.max_restarts}): {described}; {part.last_words}"
            )
            self._record("gave_up", reason=self.problem)
        return allowed
