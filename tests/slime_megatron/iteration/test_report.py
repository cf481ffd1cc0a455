"""The names and means that an iteration is reported by."""

import pytest
from slime_megatron.iteration.passes import StepResult
from slime_megatron.iteration.report import (
    Report,
    SkippedStepsError,
    actor_metrics,
    critic_metrics,
    skipped_in_a_row,
)

STEPS = [
    StepResult({"loss": 1.0, "log_probs": -5.0}, 2.0, updated=True, learning_rates=(0.1, 0.2)),
    StepResult({"loss": 4.0, "kl": 0.5}, 6.0, updated=False, learning_rates=(0.3, 0.4)),
]
MEANS = {"loss": 2.5, "kl": 0.5, "grad_norm": 4.0, "lr-pg_0": 0.2, "lr-pg_1": 0.3}


def test_an_iteration_is_the_mean_of_its_steps_and_the_number_of_those_left_out():
    report = Report(STEPS, {"rewards": 0.75}, {"actor_train": 4.0, "ref": 1.0}, num_tokens=100.0)
    assert actor_metrics(report) == pytest.approx(
        {f"train/{name}": mean for name, mean in MEANS.items()}
        | {"train/num_skipped_steps": 1.0, "rollout/rewards": 0.75}
        | {"perf/actor_train_time": 4.0, "perf/ref_time": 1.0, "perf/actor_train_tok_per_s": 25.0}
    )
    report = Report([STEPS[1]] * 3, {"rewards": 0.75}, {"actor_train": 4.0}, num_tokens=100.0)
    assert critic_metrics(report) == pytest.approx(
        {"critic/loss": 4.0, "critic/kl": 0.5, "critic/grad_norm": 6.0, "critic/lr-pg_0": 0.3}
        | {"critic/lr-pg_1": 0.4, "critic/num_skipped_steps": 3.0}
        | {"perf/critic_actor_train_time": 4.0}
    )


def test_an_iteration_without_steps_has_only_its_batch():
    assert actor_metrics(Report(rollout={"rewards": 0.75})) == {"rollout/rewards": 0.75}


def test_the_time_of_a_stage_adds_up():
    report = Report(seconds={"ref": 100.0})
    with report.timed("ref"):
        pass
    assert 100.0 < report.seconds["ref"] < 101.0


def test_a_step_that_is_taken_ends_the_row_of_those_left_out():
    taken, left_out = STEPS
    assert skipped_in_a_row(1, [left_out, taken, left_out], 2) == 1
    assert skipped_in_a_row(3, [], 2) == 3
    assert skipped_in_a_row(5, [left_out], None) == 6
    with pytest.raises(SkippedStepsError, match=r"^3 steps in a row .*last norm: 6.0.*steps 2\)"):
        skipped_in_a_row(1, [left_out, left_out, taken], 2)
