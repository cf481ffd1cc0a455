"""Generation beside training, with the engines' weights changing under running requests."""

import pytest
import torch
from slime_core.data.dump import read_dump
from slime_core.types import samples_of
from slime_testing.documented import undocumented
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


SIZE, ROLLOUTS, STALENESS = 8, 6, 2
SLOW = 1
"""A group that begins with the first weights and ends when group ``AWAITED`` has: no rollout before
the fourth has that one."""
AWAITED = 4 * SIZE

SLOW_ONE = f"""
import asyncio, time

done = set()

async def generate(args, sample, sampling_params, evaluation=False):
    if sample.group_index == {SLOW} and not evaluation:
        sample = await generate_single(args, sample, {{"max_new_tokens": 4}})
        deadline = time.monotonic() + 240
        while max(done, default=0) < {AWAITED} and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    sample = await generate_single(args, sample)
    if not evaluation:
        done.add(sample.group_index)
    return sample
"""


@pytest.fixture(scope="module")
def flying(tmp_path_factory):
    """Two runs, of which the second goes on where the first has stopped; group 1 takes long."""
    root = tmp_path_factory.mktemp("fully_async")
    model, sums = make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 20)
    (root / "slow_one.py").write_text(SLOW_ONE)
    for number in (ROLLOUTS, ROLLOUTS + 2):
        run(
            "--fully-async", "--async-buffer-size", 1, "--max-staleness", STALENESS, "--use-tis",
            "--hf-checkpoint", model, "--prompt-data", sums, "--apply-chat-template",
            "--rollout-shuffle", "--num-rollout", number, "--rollout-batch-size", SIZE,
            "--n-samples-per-prompt", 2, "--global-batch-size", 2 * SIZE, "--micro-batch-size", 4,
            "--rollout-max-response-len", 12, "--lr", "1e-3", "--rm-type", "random",
            "--custom-generate-function-path", f"{root / 'slow_one.py'}:generate",
            "--eval-prompt-data", "sums", sums, "--eval-interval", 3, "--eval-max-response-len", 3,
            "--save-debug-rollout-data", root / "dump-{rollout_id}.pt",
            "--output-dir", root / f"out-{number}", "--save", root / "save", "--save-interval", 2,
        )  # fmt: skip
    return root


def trained(root, iteration):
    return [g.group_index for g in read_dump(str(root / "dump-{rollout_id}.pt"), iteration)]


def test_engines_went_on_with_later_prompts_while_one_was_slow(flying):
    slow = next(i for i in range(ROLLOUTS) if SLOW in trained(flying, i))
    assert slow >= 3
    assert max(trained(flying, 0)) >= SIZE  # another took its place
    out = flying / f"out-{ROLLOUTS}"
    assert all(series(out, "rollout/prompts_in_flight")[i] >= 1 for i in range(slow))
    assert set(series(out, "eval/sums")) == {0, 3, 6}
    assert set(series(out, "rollout/queue_depth").values()) <= {0.0, 1.0}
    assert undocumented(name for row in metrics(out) for name in row) == set()


def test_tokens_that_grew_too_old_are_masked_and_the_slow_one_has_some(flying):
    too_old: dict[int, int] = {}
    of_the_slow_one = 0
    for iteration in range(ROLLOUTS):
        ages: list[int] = []
        for group in read_dump(str(flying / "dump-{rollout_id}.pt"), iteration):
            for sample in group.samples:
                assert len(sample.token_versions) == sample.response_length
                found = [iteration - version for version in sample.token_versions]
                if group.group_index == SLOW:
                    of_the_slow_one += sum(age > STALENESS for age in found)
                ages += found
        too_old[iteration] = sum(age > STALENESS for age in ages)
        assert min(ages) >= 0
        oldest = series(flying / f"out-{ROLLOUTS}", "rollout/staleness_max")
        assert oldest[iteration] == max(ages)
    assert of_the_slow_one > 0
    assert series(flying / f"out-{ROLLOUTS}", "rollout/num_stale_tokens") == too_old
    assert series(flying / f"out-{ROLLOUTS}", "rollout/num_wasted_tokens") == too_old


def test_no_prompt_is_lost_or_used_twice_between_a_checkpoint_and_what_follows(flying):
    used = [index for i in range(ROLLOUTS + 2) for index in trained(flying, i)]
    assert len(set(used)) == len(used) == SIZE * (ROLLOUTS + 2)
    for iteration in (1, 3, ROLLOUTS - 1, ROLLOUTS + 1):
        path = flying / "save" / f"iter_{iteration:07d}" / "rollout.pt"
        state = torch.load(path, weights_only=True)
        position = state["position"]
        waiting = [g["group_index"] for g in position["buffer"] + position.get("in_flight", [])]
        finished = [g["group_index"] for made in state["finished"].values() for g in made["groups"]]
        so_far = used[: SIZE * (iteration + 1)]
        assert sorted(so_far + finished + waiting) == list(range(position["num_groups"]))
        assert (SLOW in waiting) == (SLOW not in so_far + finished)
