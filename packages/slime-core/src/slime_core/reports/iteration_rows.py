"""What the terminal shows of a run's numbers: one line per iteration, one per evaluation."""

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slime_core.interfaces import Metrics
from slime_core.reports import skipped_steps
from slime_core.reports.start_lines import line as step_of_start


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a row: its title, the metric it shows, and how."""

    title: str
    metric: str
    spec: str
    width: int

    def cell(self, numbers: Mapping[str, float]) -> str:
        """The number in its place; a dash for one that is not known."""
        value = numbers.get(self.metric, math.nan)
        return f"{'-' if math.isnan(value) else format(value, f'z{self.spec}'):>{self.width}}"


_TRAINED = "train/loss"
_PUBLISHED = "perf/update_weights_time"
_TRUNCATED = "-truncated_ratio"
_OF_A_SET = re.compile(rf"{_TRUNCATED}$|-pass@\d+$")
"""How keys end that tell more of a set than its mean reward."""
_ROWS_PER_HEADER = 20
_SHOWN_AS_ZERO = 5e-6
_ZERO_LOSS = (
    "a loss of 0 is as it should be in the first step on a rollout: the advantages of a group sum "
    "to 0, their gradient does not; whether the model learns is told by reward and accuracy"
)

COLUMNS = (
    Column("reward", "rollout/raw_reward", ".3f", 8),
    Column("accuracy", "accuracy", ".3f", 10),
    Column("length", "rollout/response_len/mean", ".1f", 9),
    Column("loss", "train/loss", ".5f", 11),
    Column("grad norm", "train/grad_norm", ".3f", 11),
    Column("tok/s", "perf/actor_train_tok_per_s", ",.0f", 9),
    Column("seconds", "seconds", ".2f", 9),
)


def evaluations(metrics: Metrics) -> dict[str, float]:
    """The mean reward of every evaluation set in ``metrics``: the keys ``eval/<name>``.

    What else is said of a set begins with its name, behind which comes ``/`` or a known suffix; a
    name may have both in it, and is then known by the share of truncated answers beside it.
    """
    found = {key.removeprefix("eval/"): x for key, x in metrics.items() if key.startswith("eval/")}
    return {
        name: value
        for name, value in found.items()
        if f"{name}{_TRUNCATED}" in found or not ("/" in name or _OF_A_SET.search(name))
    }


def header() -> str:
    """The titles, each as wide as its column."""
    return "iteration" + "".join(f"{column.title:>{column.width}}" for column in COLUMNS)


def row(iteration: int, numbers: Mapping[str, float]) -> str:
    """One iteration's line of the table; behind it samples that failed and steps left out."""
    failed = numbers.get("rollout/failed_ratio", 0.0)
    note = f"  failed_ratio {failed:.3f}" if failed else ""
    cells = "".join(column.cell(numbers) for column in COLUMNS)
    return f"{iteration:>9}{cells}{note}{skipped_steps.note(numbers)}{_idle(numbers)}"


def _idle(numbers: Mapping[str, float]) -> str:
    """Why nothing was learnt, where the gradient is 0."""
    if numbers.get("train/grad_norm") != 0:
        return ""
    if numbers.get("rollout/response_len/max") == 0:
        return "  gradient 0: no token is trained on, all are masked or removed"
    rewarded = "rollout/raw_reward" in numbers
    return "  gradient 0: are the rewards of each group all the same?" if rewarded else ""


class Table:
    """Turns the numbers of stages into lines, as they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._numbers: dict[str, float] = {}
        self._num_rows = 0
        self._explained = self._served = False

    @property
    def reward(self) -> float:
        """The mean reward of the last rollout."""
        return self._numbers.get("rollout/raw_reward", 0.0)

    def begin(self) -> None:
        """Count the seconds of the next iteration from here."""
        self._since, self._served = self._clock(), False

    def lines(self, step: int, metrics: Metrics) -> list[str]:
        """What there is to say about the numbers of a stage of iteration ``step``.

        An evaluation has the number of iterations that its weights were trained for. It is in the
        table once: in the row of the next iteration, which those weights generated.
        """
        self._numbers |= metrics
        lines: list[str] = []
        if _PUBLISHED in metrics and not self._served:
            self._served = True
            lines.append(step_of_start("first weights published", metrics[_PUBLISHED]))
        if found := evaluations(metrics):
            self._numbers["accuracy"] = statistics.fmean(found.values())
            lines.append(self._evaluated(step, found, metrics))
        if _TRAINED in metrics:
            lines += self._row(step)
        return lines

    def _evaluated(self, step: int, found: Mapping[str, float], metrics: Metrics) -> str:
        when = f"after {step} iterations" if step > 1 else "after 1 iteration"
        failed = {name: metrics.get(f"eval/{name}/failed_ratio") for name in found}
        told = [
            f"{name} {value:.3f}" + (f" (failed_ratio {failed[name]:.3f})" if failed[name] else "")
            for name, value in found.items()
        ]
        if len(found) > 1:
            told.append(f"mean {self._numbers['accuracy']:.3f}")
        return f"evaluation {when if step else 'before training'}: {', '.join(told)}"

    def _row(self, iteration: int) -> list[str]:
        now = self._clock()
        self._numbers["seconds"], self._since = now - self._since, now
        lines = [] if self._num_rows % _ROWS_PER_HEADER else [header()]
        self._num_rows += 1
        lines.append(row(iteration, self._numbers))
        self._numbers.pop("accuracy", None)
        rewarded = "rollout/raw_reward" in self._numbers and not _idle(self._numbers)
        if not self._explained and rewarded and abs(self._numbers[_TRAINED]) < _SHOWN_AS_ZERO:
            self._explained = True
            lines.append(_ZERO_LOSS)
        return lines
