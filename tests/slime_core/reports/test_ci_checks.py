import pytest
from slime_core.config.debug import DebugConfig
from slime_core.reports.ci_checks import CheckFailedError, check_grad_norms, check_iteration

GOOD_STEP = {"ppo_kl": 0.0, "pg_clipfrac": 0.0, "train_rollout_logprob_abs_diff": 1e-3}
GOOD_BATCH = {"log_probs": -0.5, "ref_log_probs": -0.5, "entropy": 0.4}


def check(step=None, batch=None, *, iteration=0, recomputed=True, same=True, **flags) -> None:
    check_iteration(
        DebugConfig(**({"ci_test": True} | flags)),
        iteration,
        GOOD_STEP | (step or {}),
        GOOD_BATCH | (batch or {}),
        recomputed=recomputed,
        same_reference=same,
    )


def test_a_run_that_is_set_up_right_passes():
    check()


@pytest.mark.parametrize(
    ("step", "batch", "named"),
    [
        ({"ppo_kl": 1e-6}, {}, "ppo_kl of the first step is 1e-06 and not 0"),
        ({"ppo_kl": float("nan")}, {}, "ppo_kl of the first step is nan"),
        ({"pg_clipfrac": 0.5}, {}, "pg_clipfrac"),
        ({"kl_loss": 1e-3}, {}, "kl_loss"),
        ({}, {"ref_log_probs": -0.6}, "log_probs - ref_log_probs of the first step is 0.1"),
        ({"train_rollout_logprob_abs_diff": 0.2}, {}, "more than --ci-train-rollout-logprob"),
        ({}, {"log_probs": 0.1, "ref_log_probs": 0.1}, "mean of log_probs is 0.1"),
        ({}, {"entropy": -0.1}, "entropy is -0.1"),
    ],
)
def test_what_is_off_is_named(step, batch, named):
    with pytest.raises(CheckFailedError, match="--ci-test: iteration 0: ") as raised:
        check(step, batch)
    assert named in str(raised.value)


def test_nothing_is_checked_unless_asked_for():
    check({"ppo_kl": 1.0}, ci_test=False)


def test_later_iterations_are_held_to_agreement_with_the_engines_alone():
    check({"ppo_kl": 1.0, "pg_clipfrac": 1.0}, iteration=1)
    with pytest.raises(CheckFailedError, match="iteration 1"):
        check({"train_rollout_logprob_abs_diff": 0.2}, iteration=1)
    check(
        {"train_rollout_logprob_abs_diff": 0.2},
        iteration=1,
        ci_train_rollout_logprob_abs_diff_threshold=0.3,
    )


def test_saved_rollouts_are_of_other_weights_after_the_first_iteration():
    off = {"train_rollout_logprob_abs_diff": 0.2}
    check(off, iteration=1, debug_train_only=True)
    with pytest.raises(CheckFailedError, match="iteration 0"):
        check(off, debug_train_only=True)


def test_divergences_are_left_out_where_told_or_where_they_are_not_zero():
    check({"ppo_kl": 1.0, "kl_loss": 1.0}, ci_disable_kl_checker=True)
    check({"ppo_kl": 1.0, "pg_clipfrac": 1.0}, recomputed=False)
    check({"kl_loss": 1.0}, {"ref_log_probs": -0.9}, same=False)


def test_norms_of_gradients_are_compared_with_those_of_an_earlier_run(tmp_path):
    template = str(tmp_path / "norms" / "{role}_{rollout_id}_{step_id}.txt")
    check_grad_norms(DebugConfig(ci_save_grad_norm=template), "actor", 3, [1.25, 2.5])
    assert (tmp_path / "norms" / "actor_3_1.txt").read_text() == "2.5\n"
    load = DebugConfig(ci_load_grad_norm=template)
    check_grad_norms(load, "actor", 3, [1.2501, 2.5])
    with pytest.raises(CheckFailedError, match=r"is 2\.6, and .*actor_3_1\.txt says 2\.5"):
        check_grad_norms(load, "actor", 3, [1.25, 2.6])
    with pytest.raises(CheckFailedError, match=r"critic_3_0\.txt does not exist"):
        check_grad_norms(load, "critic", 3, [1.25])
