"""What an iteration of a trainer reports, and the names it goes by."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from slime_core.errors import SlimeError

from slime_megatron.iteration.microbatch_loss import LOG_PROBS
from slime_megatron.iteration.passes import StepResult


@dataclass
class Report:
    """What happened in one iteration; numbers of the batch only on the last pipeline stage."""

    steps: list[StepResult] = field(default_factory=list[StepResult])
    rollout: dict[str, float] = field(default_factory=dict[str, float])
    """Means over the batch, without a prefix."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By stage."""
    num_tokens: float = 0.0
    """Prompt and response tokens trained on, over all ranks."""

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class SkippedStepsError(SlimeError, FloatingPointError):
    """Too many steps in a row had gradients that are infinite or not a number."""


def skipped_in_a_row(before: int, steps: Sequence[StepResult], limit: int | None) -> int:
    """How many steps were skipped since one was taken, after ``before`` and then ``steps``.

    Raises:
        SkippedStepsError: ever more than ``limit``.
    """
    for step in steps:
        before = 0 if step.updated else before + 1
        if limit is not None and before > limit:
            raise SkippedStepsError(
                f"{before} steps in a row had a gradient that is infinite or not a number (the "
                f"last norm: {step.grad_norm}) and changed no weight (--max-skipped-steps "
                f"{limit}): lower --lr, look for rewards or log-probabilities that are not "
                "finite, or go on regardless with --no-check-for-nan-in-loss-and-grad"
            )
    return before


def step_metrics(step: StepResult, prefix: str = "train") -> dict[str, float]:
    """``train/*``, or ``critic/*``, of one optimizer step."""
    metrics = {f"{prefix}/{name}": x for name, x in step.metrics.items() if name != LOG_PROBS}
    metrics[f"{prefix}/grad_norm"] = step.grad_norm
    metrics |= {f"{prefix}/lr-pg_{i}": lr for i, lr in enumerate(step.learning_rates)}
    return metrics | {f"{prefix}/num_skipped_steps": float(not step.updated)}


def actor_metrics(report: Report) -> dict[str, float]:
    """One flat table for an iteration: means over its steps, batch means, timings."""
    metrics = _over_steps(report, "train")
    metrics |= {f"rollout/{name}": x for name, x in report.rollout.items()}
    metrics |= {f"perf/{stage}_time": x for stage, x in report.seconds.items()}
    if report.seconds.get("actor_train"):
        metrics["perf/actor_train_tok_per_s"] = report.num_tokens / report.seconds["actor_train"]
    return metrics


def critic_metrics(report: Report) -> dict[str, float]:
    """The same for a critic, whose batch the actor describes."""
    metrics = _over_steps(report, "critic")
    return metrics | {f"perf/critic_{stage}_time": x for stage, x in report.seconds.items()}


def _over_steps(report: Report, prefix: str) -> dict[str, float]:
    """Means over the steps, of those that report a metric; skipped steps are counted."""
    named: dict[str, list[float]] = {}
    steps: list[Mapping[str, float]] = [step_metrics(step, prefix) for step in report.steps]
    for step in steps:
        for name, value in step.items():
            named.setdefault(name, []).append(value)
    metrics = {name: sum(values) / len(values) for name, values in named.items()}
    if steps:
        metrics[f"{prefix}/num_skipped_steps"] *= len(steps)
    return metrics
