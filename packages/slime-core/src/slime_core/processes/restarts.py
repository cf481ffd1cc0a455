"""A run that lost a process is begun anew from its last commit; not without end."""

import time
from collections.abc import Callable

from slime_core.errors import SlimeError
from slime_core.files.staging import last_commit
from slime_core.processes.events import Events
from slime_core.processes.heartbeat import ProcessLost


class Restarts:
    """Counts losses since the last commit."""

    def __init__(
        self, limit: int | None, save: str | None, events: Events, say: Callable[[str], None]
    ) -> None:
        """``limit`` of None: every loss ends the run."""
        self._limit, self._save, self._events, self._say = limit, save, events, say
        self._commit = last_commit(self._save)
        self._losses: list[str] = []
        self._open: tuple[ProcessLost, float] | None = None

    def run[Made](self, attempt: Callable[[], Made]) -> Made:
        """What ``attempt`` returns as soon as one does; it calls ``ready`` once all are up.

        Raises:
            SlimeError: more than ``limit`` processes were lost without a commit in between.
        """
        while True:
            try:
                return attempt()
            except ProcessLost as lost:
                self._count(lost)

    def ready(self) -> None:
        """Everything is up; what was lost has recovered."""
        if self._open is not None:
            lost, since = self._open
            self._open = None
            seconds = time.monotonic() - since
            self._events.recovered(lost.kind, lost.name, seconds=seconds)
            self._say(f"recovered from the loss of {lost.name} in {seconds:.1f} s")

    def _count(self, lost: ProcessLost) -> None:
        self._events.lost(lost.kind, lost.name, lost.pid, how=lost.how, seconds=lost.seconds)
        if self._limit is None:
            raise SlimeError(
                f"{lost}\nThe same command continues from the last checkpoint; with "
                "--use-fault-tolerance it does so by itself"
            ) from lost
        if (newest := last_commit(self._save)) != self._commit:
            self._commit, self._losses = newest, []
        when = time.strftime("%H:%M:%S")
        self._losses.append(f"{when} {lost.name} (pid {lost.pid}): {lost.how}")
        if len(self._losses) > self._limit:
            listed = "\n".join(f"  {line}" for line in self._losses)
            reason = (
                f"{len(self._losses)} processes were lost without a new checkpoint in between "
                f"(--max-restarts {self._limit}):\n{listed}\nThe last one: {lost}"
            )
            self._events.gave_up(reason)
            raise SlimeError(reason) from lost
        where = "its last checkpoint" if self._save else "its beginning, as there is no --save"
        self._say(
            f"{str(lost).splitlines()[0]}; starting again from {where} "
            f"({len(self._losses)} of {self._limit} times)"
        )
        self._open = (lost, time.monotonic())
