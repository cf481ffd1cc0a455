"""What came of it: numbers for a file, a curve for the eye."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slime_core.errors import SlimeError


class ReportError(SlimeError, ValueError):
    """A run ended without writing the numbers that belong to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What reinforcement learning achieved."""

    accuracy_before: float
    """Mean reward on the held-out problems after the warm-up."""
    accuracy_after: float
    """The same at the end."""
    iterations: int
    train_rollout_logprob_abs_diff: float
    """Mean |trainer - SGLang| difference of log-probabilities, in the worst iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds of the whole command and of its two runs."""

    seconds: float
    seconds_warm_up: float
    seconds_reinforce: float


@dataclass(frozen=True, slots=True)
class Curves:
    """What one run measured, by step."""

    rewards: dict[int, float]
    accuracy: dict[int, float]
    logprob_gap: dict[int, float]

    def outcome(self) -> Outcome:
        """The first and last evaluation, and the worst disagreement on the way."""
        return Outcome(
            accuracy_before=self.accuracy[min(self.accuracy)],
            accuracy_after=self.accuracy[max(self.accuracy)],
            iterations=len(self.rewards),
            train_rollout_logprob_abs_diff=max(self.logprob_gap.values()),
        )

    def draw(self, path: Path) -> None:
        """Draw training reward by iteration, and the accuracy on held-out problems."""
        from matplotlib.figure import Figure  # half a second

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*_points(self.rewards), label="training reward (sampled)")
        axes.plot(*_points(self.accuracy), "o--", label="accuracy on held-out problems")
        axes.set(xlabel="iteration", ylabel="share of right answers", ylim=(0, 1.02))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=120)


def read_curves(metrics: Path, evaluation_set: str) -> Curves:
    """Read the curves of a reinforcement-learning run from its metrics.jsonl."""
    return Curves(
        rewards=read_series(metrics, "rollout/raw_reward"),
        accuracy=read_series(metrics, f"eval/{evaluation_set}"),
        logprob_gap=read_series(metrics, "train/train_rollout_logprob_abs_diff"),
    )


def read_series(metrics: Path, name: str) -> dict[int, float]:
    """One metric by step; a step written twice counts as written last."""
    series: dict[int, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record: dict[str, Any] = json.loads(line)
        if record.get(name) is not None:
            series[record["step"]] = record[name]
    if not series:
        raise ReportError(f"{metrics} has no {name}: the run did not get that far")
    return series


def write_summary(path: Path, outcome: Outcome, durations: Durations, *, seed: int) -> None:
    """Write summary.json: one flat object."""
    summary = {**asdict(outcome), **asdict(durations), "seed": seed}
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _points(series: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(series), list(series.values())
