"""``--ci-test``: what has to hold in a run that is set up right, checked while it runs.

In the first iteration the policy has not moved when its first step begins: its ratio to itself is
exactly 1. In every iteration trainer and engines agree about the tokens that were sampled; saved
rollouts are those of the trained weights only in the first iteration.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from slime_core.config.debug import DebugConfig
from slime_core.errors import SlimeError

EXACT = 1e-8
GRAD_NORM_TOLERANCE = 0.01
"""Relative and absolute, as upstream."""


class CheckFailedError(SlimeError, AssertionError):
    """Something that --ci-test or --ci-load-grad-norm checks does not hold."""


def check_iteration(
    config: DebugConfig,
    iteration: int,
    first_step: Mapping[str, float],
    batch: Mapping[str, float],
    *,
    recomputed: bool,
    same_reference: bool,
) -> None:
    """Check what one iteration reported; does nothing without --ci-test.

    Args:
        config: says what is checked, and how closely.
        iteration: which one it was.
        first_step: metrics of its first optimizer step, without a prefix.
        batch: means over its samples: log_probs, ref_log_probs, entropy, where there are any.
        recomputed: whether the ratio's denominator comes from the trainer, not from the engines.
        same_reference: whether the reference started with the policy's own weights.

    Raises:
        CheckFailedError: naming every metric that is off, its value and what it should be.
    """
    if not config.ci_test:
        return
    generated = iteration == 0 or not config.debug_train_only
    found = list(_agreement(config, first_step)) if generated else []
    if iteration == 0:
        found += _unmoved(config, first_step, batch, recomputed, same_reference)
    if found:
        listed = "; ".join(found)
        raise CheckFailedError(f"--ci-test: iteration {iteration}: {listed}")


def _agreement(config: DebugConfig, step: Mapping[str, float]) -> Iterator[str]:
    name = "train_rollout_logprob_abs_diff"
    limit = config.ci_train_rollout_logprob_abs_diff_threshold
    if name in step and not step[name] <= limit:
        flag = "--ci-train-rollout-logprob-abs-diff-threshold"
        yield f"{name} is {step[name]:.3g}, more than {flag} {limit:g}"


def _unmoved(
    config: DebugConfig,
    step: Mapping[str, float],
    batch: Mapping[str, float],
    recomputed: bool,
    same_reference: bool,
) -> Iterator[str]:
    exact: dict[str, float] = {}
    if recomputed:
        exact |= {name: step[name] for name in ("pg_clipfrac", "ppo_kl") if name in step}
    if same_reference and "ref_log_probs" in batch:
        exact["log_probs - ref_log_probs"] = batch["log_probs"] - batch["ref_log_probs"]
        if "kl_loss" in step:
            exact["kl_loss"] = step["kl_loss"]
    if config.ci_disable_kl_checker:
        exact = {name: x for name, x in exact.items() if name == "pg_clipfrac"}
    for name, value in exact.items():
        if not abs(value) <= EXACT:
            yield f"{name} of the first step is {value:.3g} and not 0"
    if not batch.get("log_probs", -1.0) < 0:
        yield f"the mean of log_probs is {batch['log_probs']:.3g} and not below 0"
    if not batch.get("entropy", 1.0) > 0:
        yield f"entropy is {batch['entropy']:.3g} and not above 0"


def check_grad_norms(
    config: DebugConfig, role: str, iteration: int, norms: Sequence[float]
) -> None:
    """Write the norms of an iteration's steps, or compare them with those written before.

    Raises:
        CheckFailedError: a norm is not there, or differs.
    """
    for step, norm in enumerate(norms):
        names = {"role": role, "rollout_id": iteration, "step_id": step}
        if config.ci_save_grad_norm is not None:
            path = Path(config.ci_save_grad_norm.format(**names))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{norm!r}\n", encoding="utf-8")
        if config.ci_load_grad_norm is not None:
            path = Path(config.ci_load_grad_norm.format(**names))
            _compare(norm, path, f"{role}, iteration {iteration}, step {step}")


def _compare(norm: float, path: Path, where: str) -> None:
    if not path.is_file():
        raise CheckFailedError(f"--ci-load-grad-norm: {path} does not exist ({where})")
    expected = float(path.read_text(encoding="utf-8"))
    tolerance = GRAD_NORM_TOLERANCE
    if not math.isclose(norm, expected, rel_tol=tolerance, abs_tol=tolerance):
        raise CheckFailedError(
            f"--ci-load-grad-norm: the gradient norm is {norm:.6g}, and {path} says "
            f"{expected:.6g} ({where})"
        )
