"""Rows that cannot be used: counted, named, and either the end of the run or left out."""

import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from slime_core.errors import DataError

logger = logging.getLogger(__name__)

Policy = Literal["stop", "skip"]

TOO_LONG = "too_long"
BEYOND_CONTEXT = "beyond_context"
MISSING_KEY = "missing_key"
DUPLICATE_ID = "duplicate_id"
_ADVICE = "mend them, or leave such rows out with --data-error-policy skip"
OF_LENGTH = (
    "engines would refuse such prompts: leave them out with --rollout-max-prompt-len N, have their "
    "responses be shorter with --rollout-max-context-len CONTEXT, or all responses with "
    "--rollout-max-response-len N (of an evaluation set: --eval-max-prompt-len and so on)"
)
"""What to do about prompts that are beyond the engines' context."""
_NONE_LEFT = "no row can be used: are these the right files and keys?"
_NUM_NAMED = 5
_NUM_ENOUGH = 1_000
"""Unusable rows after which nothing more is read to count them."""
_PLACE = re.compile(r"^.*?(?::|, row )\d+(?=[: ])")
"""What a message begins with, as ``Record.place`` has it."""


class RowError(DataError):
    """What is wrong with one row, and of which kind it is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        """Survive pickling between processes."""
        return RowError, (self.kind, str(self))


@dataclass(slots=True)
class _Way:
    """Rows that differ in their place alone."""

    first: str
    """The message of the first."""
    count: int = 0

    def told(self) -> str:
        return self.first + (f" (first of {self.count} such rows)" if self.count > 1 else "")


class Faults:
    """The rows of some files that were no prompts.

    Prompts that are too long are left out under either policy: how long is too long was given.
    """

    def __init__(self, policy: Policy, advice: str = _ADVICE) -> None:
        self._policy = policy
        self._advice = advice
        self.counts: Counter[str] = Counter()
        """How many rows of each kind."""
        self.named: dict[str, list[str]] = {}
        """The first few of each kind."""
        self._ways: dict[str, dict[str, _Way]] = {}
        """The first few of each kind, by what is wrong."""

    def add(self, kind: str, message: str) -> None:
        """Count a row; far too many of them end the reading under the policy stop."""
        self.counts[kind] += 1
        named = self.named.setdefault(kind, [])
        if len(named) < _NUM_NAMED:
            named.append(message)
        self._compare(kind, message)
        if self._policy == "stop" and self._num_unusable() >= _NUM_ENOUGH:
            self.settle(num_read=None)

    def settle(self, *, num_read: int | None) -> None:
        """Say what was left out.

        Raises:
            DataError: under the policy stop, with the first unusable rows and their number.
        """
        if self._policy == "stop" and self._num_unusable():
            raise DataError(self._complaint(num_read))
        for kind, count in self.counts.items():
            logger.warning(
                "left out %d of %s rows (%s): %s",
                count,
                num_read,
                kind,
                "; ".join(self._shown([kind], count)),
            )

    def metrics(self) -> dict[str, float]:
        """Rows left out so far, by kind."""
        return {f"rollout/data_left_out/{kind}": float(n) for kind, n in self.counts.items()}

    def _num_unusable(self) -> int:
        return self.counts.total() - self.counts[TOO_LONG]

    def _complaint(self, num_read: int | None) -> str:
        kinds = [kind for kind in self.counts if kind != TOO_LONG]
        total = self._num_unusable()
        if total == 1:
            head = "1 row of the prompt files cannot be used:"
        elif num_read is None:
            head = f"{total} rows of the prompt files cannot be used, and the rest was not read:"
        else:
            head = f"{total} of {num_read} rows of the prompt files cannot be used:"
        advice = [self._advice if total != num_read else _NONE_LEFT]
        if self.counts[BEYOND_CONTEXT]:
            advice = [OF_LENGTH, *(advice if len(kinds) > 1 else [])]
        return "\n  ".join([head, *self._shown(kinds, total), *advice])

    def _compare(self, kind: str, message: str) -> None:
        """Count the row with those that are wrong in the very same way, of the first few ways."""
        wrong = _PLACE.sub("", message)
        ways = self._ways.setdefault(kind, {})
        if wrong in ways or len(ways) < _NUM_NAMED:
            ways.setdefault(wrong, _Way(message)).count += 1

    def _shown(self, kinds: list[str], total: int) -> list[str]:
        """The first row of each way of being wrong, with the number of rows that are so."""
        ways = [way for kind in kinds for way in self._ways[kind].values()][:_NUM_NAMED]
        lines = [way.told() for way in ways]
        rest = total - sum(way.count for way in ways)
        return [*lines, f"and {rest} more"] if rest else lines
