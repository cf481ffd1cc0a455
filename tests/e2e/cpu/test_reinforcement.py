import signal

import pytest
from slime_testing.documented import undocumented
from slime_testing.runs import Run, carriers, metrics, run, series, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("reinforcement")
    return make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 24)


def command(inputs, directory, *more):
    model, sums = inputs
    return [
        "--hf-checkpoint", model, "--prompt-data", sums, "--apply-chat-template",
        "--rollout-shuffle", "--num-rollout", 2, "--rollout-batch-size", 8,
        "--n-samples-per-prompt", 4, "--global-batch-size", 32, "--micro-batch-size", 4,
        "--rollout-max-response-len", 6, "--lr", "1e-2",
        "--use-kl-loss", "--kl-loss-coef", "0.01", "--kl-loss-type", "k2",
        "--eval-prompt-data", "sums", sums, "--eval-interval", 2,
        "--output-dir", directory / "out", "--save", directory / "save", "--save-interval", 1,
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """Half the responses are right: advantages that are not zero, even for a random model."""
    file = tmp_path_factory.mktemp("reward") / "even.py"
    file.write_text(
        "async def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"
    )
    return ["--custom-rm-path", f"{file}:even"]


@pytest.fixture(scope="module")
def finished(inputs, reward, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    sets = directory / "sets.yaml"
    sets.write_text(
        f"""
eval:
  defaults: {{n_samples_per_eval_prompt: 2, temperature: 0, max_response_len: 3}}
  datasets:
    - {{name: few, path: "{inputs[1]}@[:4]", metadata_overrides: {{level: easy}}}}
    - {{name: one, path: "{inputs[1]}@[:1]", n_samples_per_eval_prompt: 1, top_p: 0.5}}
"""
    )
    run(*command(inputs, directory, *reward, "--eval-config", sets))
    return directory


def test_every_metric_of_a_run_is_documented(finished):
    names = {name for row in metrics(finished / "out") for name in row}
    assert len(names) > 50
    assert undocumented(names) == set()


def test_trainer_and_engines_agree_after_every_publish(finished):
    out = finished / "out"
    differences = series(out, "train/train_rollout_logprob_abs_diff")
    assert list(differences) == [0, 1]
    assert 0 < max(differences.values()) <= 1e-4
    assert all(value > 0 for value in series(out, "train/grad_norm").values())


def test_the_first_iteration_starts_at_the_reference(finished):
    out = finished / "out"
    # A mean of squares is zero only where every token's two log-probabilities have the same bits.
    assert series(out, "train/kl_loss")[0] == 0.0
    assert series(out, "train/ppo_kl")[0] == 0.0
    assert series(out, "train/kl_loss")[1] > 0.0


def test_it_is_evaluated_before_and_after(finished):
    for name in ("sums", "few", "one"):
        assert set(series(finished / "out", f"eval/{name}")) == {0, 2}, name


def test_a_set_of_the_file_is_answered_as_the_file_says(finished):
    out = finished / "out"
    assert set(series(out, "eval/few/response_len/max").values()) == {3.0}
    assert series(out, "eval/few-pass@2").keys() == {0, 2}
    assert series(out, "eval/one-pass@2") == {}


@pytest.fixture(scope="module")
def killed(inputs, reward, tmp_path_factory):
    """The same with memory that is lent, and longer; killed after as many iterations."""
    directory = tmp_path_factory.mktemp("killed")
    more = ["--skip-eval-before-train", "--offload", "--num-rollout", 500]
    process = Run(*command(inputs, directory, *reward, *more))
    out = directory / "out"
    assert wait_for((out / "metrics.jsonl").exists, 300)
    last = ("train/loss", "perf/offload_s", "perf/resume_s")
    assert wait_for(lambda: all(1 in series(out, name) for name in last), 300)
    mark, found = process.mark, carriers(process.mark)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return directory, mark, found


def first_two(directory, name):
    return {i: value for i, value in series(directory / "out", name).items() if i < 2}


def test_a_seed_gives_the_same_losses_again_though_memory_is_lent(finished, killed):
    for name in ("release", "resume", "offload", "onload"):
        assert list(first_two(killed[0], f"perf/{name}_s")) == [0, 1]
    for name in ("train/loss", "train/grad_norm", "rollout/raw_reward", "rollout/log_probs"):
        assert first_two(killed[0], name) == first_two(finished, name), name


def test_a_killed_driver_leaves_no_process(killed):
    _, mark, found = killed
    assert len(found) > 5
    assert wait_for(lambda: not carriers(mark), 90), carriers(mark)


def test_it_continues_on_two_ranks_and_two_engines_over_another_transport(finished, inputs, reward):
    output = run(
        *command(
            inputs, finished, *reward, "--num-rollout", 3, "--skip-eval-before-train",
            "--actor-num-gpus-per-node", 2, "--tensor-model-parallel-size", 2,
            "--rollout-num-engines", 2, "--update-weight-transport", "nccl",
        )
    )  # fmt: skip
    assert "continuing from" in output
    differences = series(finished / "out", "train/train_rollout_logprob_abs_diff")
    assert list(differences) == [0, 1, 2]
    assert differences[2] <= 1e-4
