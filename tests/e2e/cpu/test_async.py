"""Generation beside training, with the engines' weights changing under running requests."""

import pytest
from slime_core.data.dump import read_dump
from slime_core.types import samples_of
from slime_testing.runs import metrics, run, series, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = pytest.mark.slow

ITERATIONS = 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("async")
    model, sums = make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 24)
    run(
        "--async-buffer-size", 3, "--max-staleness", 1, "--use-tis",
        "--hf-checkpoint", model, "--prompt-data", sums, "--apply-chat-template",
        "--rollout-shuffle", "--num-rollout", ITERATIONS, "--rollout-batch-size", 8,
        "--n-samples-per-prompt", 4, "--global-batch-size", 32, "--micro-batch-size", 4,
        "--rollout-max-response-len", 24, "--lr", "1e-2", "--rm-type", "random",
        "--eval-prompt-data", "sums", sums, "--eval-interval", 4, "--eval-max-response-len", 3,
        "--save-debug-rollout-data", root / "dump-{rollout_id}.pt",
        "--output-dir", root / "out", "--save", root / "save", "--save-interval", 2,
    )  # fmt: skip
    return root


def test_no_token_is_older_than_allowed_and_some_are_old(finished):
    ages = []
    for iteration in range(ITERATIONS):
        for sample in samples_of(read_dump(str(finished / "dump-{rollout_id}.pt"), iteration)):
            assert len(sample.token_versions) == len(sample.rollout_log_probs)
            ages += [iteration - version for version in sample.token_versions]
    assert max(ages) == 1
    assert min(ages) >= 0
    assert sum(series(finished / "out", "rollout/num_stale_tokens").values()) == 0


def test_the_trainer_agrees_with_the_engines_about_every_token(finished):
    # The first rollout is the trained weights' own; later ones may be one version older.
    differences = series(finished / "out", "train/train_rollout_logprob_abs_diff")
    assert list(differences) == list(range(ITERATIONS))
    assert differences[0] <= 1e-4


def test_the_books_of_time_add_up(finished):
    for owner in ("trainer", "engines"):
        shares = [
            {k: v for k, v in row.items() if k.startswith(f"perf/{owner}_") and "share" in k}
            for row in metrics(finished / "out")
        ]
        found = [sum(each.values()) for each in shares if each]
        assert found == pytest.approx([1.0] * len(found), abs=1e-6)
        assert len(found) >= ITERATIONS


def test_evaluation_goes_on_in_between(finished):
    assert set(series(finished / "out", "eval/sums")) == {0, 4, 5}


def test_a_finished_run_has_its_last_checkpoint_and_no_rollout_left_over(finished):
    import torch

    state = torch.load(finished / "save" / "iter_0000004" / "rollout.pt", weights_only=True)
    assert state["finished"] == {}
    earlier = torch.load(finished / "save" / "iter_0000001" / "rollout.pt", weights_only=True)
    assert set(earlier["finished"]) <= {2}


@pytest.fixture(scope="module", params=["retract", "in_place"])
def held(request, tmp_path_factory):
    """A run whose requests stay in the engines while weights change."""
    root = tmp_path_factory.mktemp(request.param)
    model, sums = make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 24)
    cache = ["--sglang-disable-radix-cache"] if request.param == "retract" else []
    run(
        "--weight-update-mode", request.param, *cache, "--async-buffer-size", 1,
        "--max-staleness", 1, "--use-tis", "--hf-checkpoint", model, "--prompt-data", sums,
        "--num-rollout", HELD, "--rollout-batch-size", 8, "--n-samples-per-prompt", 4,
        "--global-batch-size", 32, "--micro-batch-size", 8, "--rollout-max-response-len", 96,
        "--sglang-server-concurrency", 8, "--lr", "1e-2", "--rm-type", "random",
        "--save-debug-rollout-data", root / "dump-{rollout_id}.pt", "--output-dir", root / "out",
    )  # fmt: skip
    return root


HELD = 3


def test_requests_that_are_held_while_weights_change_are_whole_and_as_old_as_they_may_be(held):
    ages: list[int] = []
    for iteration in range(HELD):
        for sample in samples_of(read_dump(str(held / "dump-{rollout_id}.pt"), iteration)):
            assert len(sample.token_versions) == len(sample.rollout_log_probs)
            assert len(set(sample.token_versions)) == 1  # nothing was sent a second time
            ages += [iteration - version for version in sample.token_versions]
    assert set(ages) == {0, 1}
    assert sum(series(held / "out", "rollout/num_stale_tokens").values()) == 0
    assert set(series(held / "out", "train/train_rollout_logprob_abs_diff")) == set(range(HELD))
