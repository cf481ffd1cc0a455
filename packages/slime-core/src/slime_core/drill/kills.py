"""Kill the driver again and again, and start the same command each time."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from slime_core.drill.attempt import Attempt, first_iteration, phase_begun, underway
from slime_core.drill.plan import START, Kill
from slime_core.drill.trained import outcome
from slime_core.drill.tries import Drill, Row, Undisturbed, ending, judged

_NAME = "driver-kills"


def try_driver_kills(
    drill: Drill, kills: Sequence[Kill], undisturbed: Undisturbed, say: Callable[[str], None]
) -> Row:
    """Kill the driver at each of these moments; start the same command again each time."""
    begin = time.time()
    drill.clear(_NAME)
    places: Counter[str] = Counter()
    ended: str | None = None
    for number, kill in enumerate(kills, 1):
        with drill.start(_NAME) as running:
            if not _wait_for(running, kill, undisturbed, drill.limit_s):
                ended = ending(running, 0.0)
                say(f"before kill {number}: {ended}")
                break
            running.kill()
            where = underway(running.events)
        places[where] += 1
        say(f"kill {number} of {len(kills)}: {where}, meant for {kill.phase}")
    if ended is None:
        with drill.start(_NAME) as running:
            ended = ending(running, drill.limit_s)
    row = Row(
        kind="driver",
        fault="KILL",
        phase="any",
        ended=ended,
        seconds=round(time.time() - begin, 1),
        kills=places.total(),
        kills_by_phase=dict(sorted(places.items())),
    )
    return judged(row, undisturbed.outcome, outcome(drill.directory / _NAME))


def _wait_for(running: Attempt, kill: Kill, undisturbed: Undisturbed, limit_s: float) -> bool:
    """Whether the process still runs when the moment has come."""
    if kill.phase == START:
        return not running.finish(kill.part * undisturbed.start_s)

    def due() -> bool:
        first = first_iteration(running.events)
        aim = None if first is None else first + kill.iteration
        return aim is not None and phase_begun(running.events, kill.phase, aim) is not None

    seconds = kill.part * undisturbed.lengths.get(kill.phase, 0.0)
    return running.wait(due, limit_s) and not running.finish(seconds)
