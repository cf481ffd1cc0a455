"""What the rules say about objectives, through the command line."""

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_train.resolve import resolve
from slime_train.sources import read_sources

BASE = (
    "--hf-checkpoint /models/tiny --prompt-data p.jsonl --num-rollout 3 --rollout-batch-size 4 "
    "--n-samples-per-prompt 2"
)


def resolved(line, **facts):
    return resolve(read_sources(f"{BASE} {line}".split()), Facts(**facts))


def config(line="", **facts):
    return resolved(line, **facts).config


def problems(line, **facts):
    with pytest.raises(ConfigErrors) as caught:
        resolved(line, **facts)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("estimator", "surrogate"),
    [("grpo", "clip"), ("gspo", "gspo"), ("cispo", "cispo"), ("rloo", "clip"), ("maxrl", "clip")],
)
def test_the_surrogate_follows_the_estimator(estimator, surrogate):
    line = f"--advantage-estimator {estimator}"
    assert config(line).policy_loss.policy_surrogate == surrogate
    assert config(f"{line} --policy-surrogate sapo").policy_loss.policy_surrogate == "sapo"


def test_a_mean_over_tokens_has_two_names():
    assert config("--calculate-per-token-loss").policy_loss.loss_aggregation == "token"
    text = problems("--calculate-per-token-loss --loss-aggregation sample")
    assert "--loss-aggregation sample" in text


def test_the_constant_is_the_longest_response():
    loss = config("--loss-aggregation constant --rollout-max-response-len 77").policy_loss
    assert loss.loss_aggregation_constant == 77.0
    loss = config("--loss-aggregation constant --loss-aggregation-constant 5").policy_loss
    assert loss.loss_aggregation_constant == 5.0
    assert "--loss-aggregation constant" in problems("--loss-aggregation-constant 5")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--tis-level sequence", "--use-tis"),
        ("--tis-clip 3", "--use-tis"),
        ("--rs-level sequence", "--use-rs"),
        ("--opsm-delta 0.1", "--use-opsm"),
        ("--use-tis --tis-clip 0.5 --tis-clip-low 0.5", "must be below --tis-clip 0.5"),
        ("--use-rs --rs-lower-bound 3", "must be below --rs-upper-bound 2.0"),
        ("--use-tis --tis-level geometric --tis-batch-normalize", "token or sequence"),
        ("--get-mismatch-metrics --tis-batch-normalize", "--tis-batch-normalize without"),
        ("--use-tis --use-rollout-logprobs", "nothing to correct"),
        ("--use-decoupled-ppo --use-rollout-logprobs", "drop one"),
        ("--kl-coef 0.1", "has no effect with --advantage-estimator grpo"),
        ("--value-clip 0.1", "--advantage-estimator ppo"),
        ("--gdpo-reward-keys a b", "--advantage-estimator gdpo"),
        ("--advantage-estimator gdpo", "--gdpo-reward-keys KEY"),
        (
            "--advantage-estimator gdpo --gdpo-reward-keys a b --gdpo-reward-weights 1",
            "1 values for 2",
        ),
        ("--advantage-estimator reinforce_plus_plus", "--normalize-advantages"),
        ("--overlong-buffer-len 9999", "--rollout-max-response-len"),
        ("--overlong-penalty-factor 2", "--overlong-buffer-len"),
        ("--length-penalty-coef 0.1", "--length-penalty-type"),
        ("--length-penalty-type linear", "--length-penalty-coef"),
        ("--use-opd", "--opd-type"),
        ("--use-opd --opd-type megatron", "--opd-teacher-load"),
        ("--use-opd --opd-type sglang", "--rm-url"),
        ("--use-opd --opd-type sglang --rm-url h:1 --opd-teacher-ckpt-step 3", "leave it out"),
        ("--opd-kl-coef 2", "--use-opd"),
        ("--use-stateless-adam", "--no-save-optim"),
        ("--loss-type custom_loss", "--custom-loss-function-path"),
        ("--custom-loss-function-path f.py", "--loss-type custom_loss"),
        ("--loss-type dpo_loss", "--n-samples-per-prompt 2"),
        ("--dpo-beta 0.5", "--loss-type dpo_loss"),
        ("--sapo-temperature-positive 2", "--policy-surrogate sapo"),
        ("--use-top-p-log-probs", "--rollout-top-p"),
        ("--advantage-estimator cispo --eps-clip-c 3", "--policy-surrogate cispo"),
        ("--disable-compute-advantages-and-returns", "--loss-type policy_loss"),
        ("--advantage-estimator rloo --disable-rewards-normalization", "leaves nothing of"),
        ("--advantage-estimator maxrl --overlong-buffer-len 9", "rewards other than 0 and 1"),
        ("--overlong-buffer-len 9 --custom-reward-post-process-path f.py", "drop one"),
        (
            "--advantage-estimator gdpo --gdpo-reward-keys a b --reward-key c "
            "--overlong-buffer-len 9",
            "none of --gdpo-reward-keys a b",
        ),
    ],
)
def test_what_would_have_no_effect_or_no_meaning_is_refused(line, named):
    assert named in problems(line)


def test_preferences_need_no_sampling():
    line = "--n-samples-per-prompt 1 --loss-type dpo_loss --dpo-loss-type ipo"
    c = config(line)
    assert (c.preference.dpo_loss_type, c.batch.global_batch_size) == ("ipo", 4)
    assert not c.advantage.compute_advantages_and_returns


def test_where_only_a_teacher_is_there_nothing_is_scored():
    line = "--use-opd --opd-type sglang --rm-url http://h:1/generate"
    assert config(line).reward.rm_type == "zero"
    assert config(f"{line} --rm-type math").reward.rm_type == "math"
    assert config(f"{line} --custom-rm-path f.py").reward.rm_type is None
    module = "slime.rollout.on_policy_distillation"
    asked = config(
        f"{line} --custom-rm-path {module}.reward_func "
        f"--custom-reward-post-process-path {module}.post_process_rewards"
    ).reward
    assert (asked.rm_type, asked.custom_rm_path) == ("zero", None)
    assert asked.custom_reward_post_process_path is None


def test_a_teacher_is_started_only_on_a_cpu(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    line = f"--use-opd --opd-type sglang --opd-teacher-load {tmp_path}"
    assert config(line).distillation.opd_teacher_load == str(tmp_path)
    for gpus in ("--device cuda", "--device auto"):
        text = problems(f"{line} {gpus}", num_gpus=8)
        assert f"--model-path {tmp_path} --port PORT` on GPUs that CUDA_VISIBLE_DEVICES" in text
        assert "--rm-url http://HOST:PORT" in text
    served = config(f"{line} --device cuda --rm-url http://h:1", num_gpus=8)
    assert served.reward.rm_url == "http://h:1"


@pytest.mark.parametrize("kind", ["sglang", "megatron"])
def test_a_teacher_that_is_not_there_is_told_before_anything_starts(kind, tmp_path):
    line = f"--use-opd --opd-type {kind} --opd-teacher-load {tmp_path}"
    assert f"--opd-teacher-load {tmp_path} is neither a Hugging Face" in problems(line)
    assert "there is no such directory" in problems(f"{line}/none")


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--use-unbiased-kl", "--use-unbiased-kl has no effect without --use-kl-loss"),
        ("--kl-loss-type k3", "--kl-loss-type has no effect without --use-kl-loss or --kl-coef"),
        ("--gamma 0.9", "--gamma has no effect with --advantage-estimator grpo"),
        ("--lambd 0.9", "--lambd has no effect with --advantage-estimator grpo: it is for ppo"),
        ("--rm-url http://h:1", "--rm-url has no effect with --rm-type math"),
        (
            "--update-weight-disk-dir /tmp/w",
            "--update-weight-disk-dir has no effect without --update-weight-transport disk",
        ),
    ],
)
def test_a_flag_that_changes_nothing_here_is_noted(line, note):
    assert note in " ".join(resolved(line).notices)
    assert note not in " ".join(resolved("").notices)


def test_flags_that_are_of_effect_are_not_noted():
    for line in (
        "--use-kl-loss --kl-loss-coef 0.1 --use-unbiased-kl --kl-loss-type k3",
        "--advantage-estimator reinforce_plus_plus --normalize-advantages --gamma 0.9",
        "--rm-type remote_rm --rm-url http://h:1",
    ):
        assert "no effect" not in " ".join(resolved(line).notices)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--ref-ckpt-step 3", "--ref-ckpt-step chooses among checkpoints: give --ref-load DIR"),
        ("--load-debug-rollout-data-subsample 0.5", "needs --load-debug-rollout-data"),
        (
            "--rollout-function-path slime.rollout.sft_rollout.generate_rollout",
            "give --loss-type sft_loss, not policy_loss",
        ),
    ],
)
def test_half_of_what_belongs_together_is_a_mistake(line, message):
    assert message in problems(line)


def test_a_run_that_trains_nothing_hears_nothing_of_advantages():
    line = "--n-samples-per-prompt 1"
    assert "every advantage is 0" in " ".join(resolved(line).notices)
    evaluates = f"{line} --num-rollout 0 --eval-prompt-data set e.jsonl"
    assert "every advantage is 0" not in " ".join(resolved(evaluates).notices)


def test_converted_weights_are_begun_with_and_trained_ones_gone_on_with(tmp_path):
    save, load = tmp_path / "save", tmp_path / "load"
    for directory in (save, load):
        directory.mkdir()
    (load / "latest_checkpointed_iteration.txt").write_text("release\n")
    line = f"--load {load} --save {save}"
    assert config(line).checkpoint.finetune
    assert not config(f"{line} --ckpt-step 3").checkpoint.finetune
    (save / "latest_checkpointed_iteration.txt").write_text("4")
    assert not config(line).checkpoint.finetune
    (save / "latest_checkpointed_iteration.txt").write_text("release")
    assert config(f"--save {save}").checkpoint.finetune


def test_a_directory_to_load_from_that_holds_nothing_is_noted(tmp_path):
    note = "the run starts from --hf-checkpoint"
    assert note in " ".join(resolved(f"--load {tmp_path}").notices)
    assert note not in " ".join(resolved(f"--load {tmp_path} --save {tmp_path}").notices)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    assert note not in " ".join(resolved(f"--load {tmp_path}").notices)


def test_gdpo_weighs_its_rewards_alike_and_whitens():
    c = config("--advantage-estimator gdpo --gdpo-reward-keys correct short")
    assert c.advantage.gdpo_reward_weights == (1.0, 1.0)
    assert c.advantage.normalize_advantages


def test_rejection_keeps_what_importance_weights_keep():
    c = config("--use-tis --use-rs --tis-clip 3 --tis-clip-low 0.5").off_policy
    assert (c.rs_lower_bound, c.rs_upper_bound) == (0.5, 3.0)


def test_the_kl_loss_without_a_gradient_is_warned_about():
    line = "--use-kl-loss --kl-loss-coef 0.1 --kl-loss-type"
    assert any("gradient of mean zero" in notice for notice in resolved(f"{line} k1").notices)
    assert not any("gradient of mean zero" in notice for notice in resolved(f"{line} k3").notices)


def test_weighing_the_estimate_that_needs_no_weight_is_warned_about():
    line = "--use-kl-loss --kl-loss-coef 0.1 --use-unbiased-kl --kl-loss-type"
    assert any("k2 has it without" in notice for notice in resolved(f"{line} k2").notices)
    assert not any("k2 has it without" in notice for notice in resolved(f"{line} k3").notices)


def test_one_response_per_prompt_cannot_be_compared():
    notices = resolved("--n-samples-per-prompt 1").notices
    assert any("every advantage is 0" in notice for notice in notices)


@pytest.mark.parametrize(
    ("line", "policy"),
    [("--reward-failure-score -1", "score"), ("--reward-num-retries 3", "retry")],
)
def test_what_belongs_to_one_failure_policy_is_refused_with_another(line, policy):
    text = problems(line)
    assert f"has no effect with --reward-failure-policy drop-sample: give {POLICY} {policy}" in text
    assert config(f"{line} {POLICY} {policy}").reward.reward_failure_policy == policy


POLICY = "--reward-failure-policy"


@pytest.mark.parametrize("mode", ["abort", "in_place"])
def test_who_asks_the_engines_knows_what_a_publish_does_to_requests(mode):
    from types import SimpleNamespace

    from slime_train.producers.engines import _generation

    engines = SimpleNamespace(router_url="http://127.0.0.1:1", urls=["http://127.0.0.1:2"])
    spec = _generation(config(f"--weight-update-mode {mode}"), engines)
    assert spec.weight_update_mode == mode
