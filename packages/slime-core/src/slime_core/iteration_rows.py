"""One line of text per iteration: its numbers under the titles of a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from slime_core.interfaces import Metrics


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


COLUMNS = (
    Column("reward", "rollout/raw_reward", ".3f", 8),
    Column("accuracy", "accuracy", ".3f", 10),
    Column("loss", "train/loss", ".5f", 11),
    Column("grad norm", "train/grad_norm", ".3f", 11),
    Column("tok/s", "perf/actor_train_tok_per_s", ",.0f", 9),
    Column("seconds", "seconds", ".2f", 9),
)


def evaluations(metrics: Metrics) -> dict[str, float]:
    """The mean reward of every evaluation set in ``metrics``: the keys ``eval/<name>``."""
    return {
        name.removeprefix("eval/"): value
        for name, value in metrics.items()
        if name.startswith("eval/") and "/" not in name[5:] and "-" not in name[5:]
    }


def header() -> str:
    """The titles, each as wide as its column."""
    return "iteration" + "".join(f"{column.title:>{column.width}}" for column in COLUMNS)


def row(iteration: int, numbers: Mapping[str, float]) -> str:
    """One iteration's line of the table; samples that failed are told behind it."""
    failed = numbers.get("rollout/failed_ratio", 0.0)
    note = f"  failed_ratio {failed:.3f}" if failed else ""
    return f"{iteration:>9}" + "".join(column.cell(numbers) for column in COLUMNS) + note
