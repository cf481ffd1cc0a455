"""The process behind ``workers``: reads questions from stdin, writes verdicts to stdout.

One JSON line ``[response, label, seconds]`` in, one JSON number or ``null`` out. The kernel ends
it when it computes longer than it was given, and it ends itself when its parent is gone.
"""

import json
import logging
import math
import resource
import signal
import sys
import time

from slime_rewards.math import verify

_MEMORY = 4 << 30


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    logging.disable(logging.WARNING)  # math-verify warns on every call without its own time limit
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    for line in sys.stdin:
        response, label, seconds = json.loads(line)
        _allow(seconds)
        sys.stdout.write(json.dumps(_verdict(response, label)) + "\n")
        sys.stdout.flush()


def _allow(seconds: float) -> None:
    """Processor time until the kernel ends this process, also inside one long C call."""
    limit = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _verdict(response: str, label: str) -> float | None:
    """None where the library gave up; the boundary to code that may raise anything."""
    try:
        return verify(response, label)
    except Exception:
        return None


if __name__ == "__main__":
    main()
