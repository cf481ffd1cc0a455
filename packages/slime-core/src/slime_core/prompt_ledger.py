"""What became of every prompt that was given out; the books must balance."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from slime_core.errors import DataError
from slime_core.scores import is_broken
from slime_core.types import SampleGroup


class PromptLedger:
    """Counts since the start of the run, kept in checkpoints.

        given out = trained + filtered (by reason) + stale + aborted + failed + buffered
                    + in flight

    A prompt is given out when its group is made, not when it is taken from the buffer again. The
    source that owns the ledger reports what it gives out and gets back, the collection what came
    of it; ``settle`` compares the two, and both with the buffer.
    """

    def __init__(self) -> None:
        self.given_out = 0
        self.trained = 0
        self.filtered: Counter[str] = Counter()
        """By reason: those of --dynamic-sampling-filter-path, and surplus, for those that were
        finished when there were enough."""
        self.stale = 0
        self.aborted = 0
        """Given back unfinished, and then dropped by the source instead of being given out."""
        self.added = 0
        """Of those given out, how many a hook put into the buffer."""
        self.failed = 0
        """Groups without a sample that can be trained on."""
        self.in_flight = 0
        """Those that were still being written when the last rollout was full, and go on."""
        self._returned: Counter[int] = Counter()
        """Groups that should be in the buffer."""
        self._under_way: Counter[int] = Counter()
        """Groups given out of which nothing was reported since."""

    def take(self, groups: Iterable[SampleGroup]) -> None:
        """They were given out, some of them again."""
        for group in groups:
            if self._returned[group.group_index]:
                self._returned[group.group_index] -= 1
            else:
                self.given_out += 1
            self._under_way[group.group_index] += 1

    def give_back(self, groups: Iterable[SampleGroup]) -> None:
        """They are to be given out again."""
        for group in groups:
            self._returned[group.group_index] += 1
            self._under_way[group.group_index] -= 1

    def add(self, groups: Iterable[SampleGroup]) -> None:
        """They are to be given out; those not under way are new, or done with and given anew."""
        for group in groups:
            if self._under_way[group.group_index] <= 0:
                self.given_out += 1
                self.added += 1
            self.give_back([group])

    def train(self, groups: Iterable[SampleGroup]) -> None:
        """They make up a batch; without a usable sample they count as failed."""
        for group in groups:
            self._under_way[group.group_index] -= 1
            if all(map(is_broken, group.samples)):
                self.failed += 1
            else:
                self.trained += 1

    def conclude(self, groups: Iterable[SampleGroup], reason: str) -> None:
        """They make up a batch, and whatever else is under way was filtered for ``reason``.

        For whoever chose groups without telling what became of the others; groups that were never
        given out count as given out now.
        """
        groups = list(groups)
        for group in groups:
            if self._under_way[group.group_index] <= 0:
                self.given_out += 1
                self.added += 1
        self.train(groups)
        self.filter({reason: (+self._under_way).total()})

    def filter(self, reasons: Mapping[str, int]) -> None:
        """So many were finished and not wanted."""
        self.filtered.update({reason: n for reason, n in reasons.items() if n})

    def settle(self, waiting: Iterable[int], *, num_made: int | None = None) -> None:
        """Compare with the groups that wait in the buffer, and the number made.

        Raises:
            DataError: the books do not balance, naming by how much.
        """
        self._under_way.clear()
        lost = self._returned - Counter(waiting)
        self.aborted += lost.total()
        self._returned -= lost
        known = self.given_out - self.added
        if num_made is not None and num_made != known:
            raise DataError(
                f"the source made {num_made} groups and the ledger has {known} given out: "
                f"{abs(num_made - known)} groups are not accounted for"
            )
        accounted = sum(self.counts().values()) - self.given_out
        if accounted != self.given_out:
            shown = ", ".join(f"{name} {count}" for name, count in self.counts().items())
            raise DataError(
                f"{abs(self.given_out - accounted)} prompts are "
                f"{'missing from' if accounted < self.given_out else 'too many in'} the books: "
                f"{shown}"
            )

    def counts(self) -> dict[str, int]:
        """Both sides of the equation; ``given_out`` is the sum of the others."""
        return {
            "given_out": self.given_out,
            "trained": self.trained,
            "filtered": self.filtered.total(),
            "stale": self.stale,
            "aborted": self.aborted,
            "failed": self.failed,
            "buffered": self._returned.total(),
            "in_flight": self.in_flight,
        }

    @property
    def returned(self) -> list[int]:
        """Groups that should be in the buffer."""
        return list(self._returned.elements())

    def metrics(self) -> dict[str, float]:
        """``counts`` as rollout/prompts_*, and the reasons of filters."""
        found = {f"rollout/prompts_{name}": float(n) for name, n in self.counts().items()}
        reasons = self.filtered.items()
        return found | {f"rollout/prompts_filtered/{why}": float(n) for why, n in reasons}

    def state_dict(self) -> dict[str, Any]:
        """The books as plain data."""
        return {
            **self.counts(),
            "filtered": dict(self.filtered),
            "added": self.added,
            "buffered": sorted(self._returned.elements()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the books of ``state_dict``."""
        for name in ("given_out", "trained", "stale", "aborted", "failed", "added"):
            setattr(self, name, state[name])
        self.in_flight = state.get("in_flight", 0)
        self.filtered = Counter(state["filtered"])
        self._returned = Counter(state["buffered"])


def opened(num_made: int, waiting: Collection[int]) -> PromptLedger:
    """Books for a checkpoint without any: what does not wait counts as trained."""
    ledger = PromptLedger()
    ledger.load_state_dict(
        {
            **ledger.state_dict(),
            "given_out": num_made,
            "trained": num_made - len(waiting),
            "buffered": waiting,
        }
    )
    return ledger
