"""What a command line gives in vain, or would fail over hours later, is said before the start."""

from datetime import datetime
from pathlib import Path

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import Resolved, resolve
from slime_train.sources import read_sources

SFT = "--loss-type sft_loss"


def resolved(line: str) -> Resolved:
    facts = Facts(megatron_args=ARCHITECTURE, now=datetime(2026, 1, 2))
    return resolve(read_sources(f"{BASE} {line}".split()), facts)


def problems(line: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        resolved(line)
    return "\n".join(caught.value.problems)


def told(line: str) -> str:
    return "\n".join(resolved(line).notices)


@pytest.mark.parametrize("flag", ["--save-hf", "--save-debug-rollout-data", "--ci-save-grad-norm"])
@pytest.mark.parametrize("place", ["{iteration}", "{rollout_id", "{}", "{rollout_id.x}", "}"])
def test_a_path_that_cannot_be_filled_in_is_refused(flag: str, place: str) -> None:
    text = problems(f"{flag} /tmp/x/{place}")
    assert f"{flag} /tmp/x/{place}: only {{" in text
    assert "{rollout_id}" in text


@pytest.mark.parametrize(
    "flag",
    [
        "--save-hf {}/hf",
        "--save-debug-rollout-data {}/d/{{rollout_id}}.pt",
        "--save-debug-train-data {}/d/{{rollout_id}}.pt",
        "--dump-details {}/d",
    ],
)
def test_a_place_for_what_is_written_hours_later_is_looked_at_before(
    flag: str, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("")
    line = flag.format(tmp_path / "notes")
    assert problems(line).splitlines() == [
        f"{line}: {tmp_path / 'notes'} is no directory; choose another place"
    ]
    resolved(flag.format(tmp_path / "new"))
    resolved(f"{line} --dump-config")  # perhaps on another machine than the run


def test_a_path_may_have_the_number_in_a_width_of_its_own_and_braces_of_its_own() -> None:
    config = resolved("--save-hf /tmp/{{x}}/{rollout_id:07d}").config
    assert config.checkpoint.save_hf is not None
    assert config.checkpoint.save_hf.format(rollout_id=7) == "/tmp/{x}/0000007"


def test_files_of_iterations_and_ranks_have_to_differ() -> None:
    line = "--save-debug-rollout-data /tmp/d/x.pt"
    assert "every iteration writes over what the one before it wrote" in told(line)
    assert "writes over" not in told(line.replace("x.pt", "{rollout_id}.pt"))
    assert "writes over" not in told(f"{line} --num-rollout 1")
    assert "writes over" not in told("--save-hf /tmp/hf")
    line = "--save-debug-train-data /tmp/d/{rollout_id}.pt"
    assert "2 ranks would write the same file" in problems(f"{line} --actor-num-gpus-per-node 2")
    resolved(line)
    resolved("--save-debug-train-data /tmp/d/{rollout_id}-{rank}.pt --actor-num-gpus-per-node 2")


@pytest.mark.parametrize(
    "flag",
    [
        "--custom-generate-function-path",
        "--custom-rm-path",
        "--dynamic-sampling-filter-path",
        "--rollout-sample-hook-path",
        "--buffer-filter-path",
        "--data-source-path",
        "--rollout-function-path",
    ],
)
def test_functions_of_a_rollout_are_refused_where_there_is_none(flag: str) -> None:
    text = problems(f"{SFT} {flag} mine.py:f")
    assert f"{flag} with --loss-type sft_loss" in text
    assert "no such function is called" in text


def test_numbers_of_a_rollout_are_told_to_have_no_effect_where_there_is_none() -> None:
    text = told(f"{SFT} --rm-type math --rollout-temperature 0.5 --partial-rollout")
    assert "--rm-type, --rollout-temperature, --partial-rollout without effect: --loss-typ" in text
    assert "without effect" not in told(SFT)
    upstream = "slime.rollout.sft_rollout.generate_rollout --debug-train-only"
    assert "without effect" not in told(f"{SFT} --rollout-function-path {upstream}")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--chosen-key better", "--chosen-key without --loss-type dpo_loss or rm_loss"),
        ("--prompt-data p.jsonl", "--prompt-data names p.jsonl twice: weight it instead"),
        ("--start-rollout-id 3", "--start-rollout-id 3 leaves none of the iterations 0 to 2"),
        ("--rollout-top-k 0", "--rollout-top-k 0 keeps no token: give -1"),
        ("--eval-prompt-data a a.jsonl --eval-top-k 0", "--eval-top-k 0 keeps no token: give -1"),
        ("--rollout-seed -1", "--rollout-seed must be >= 0 and <= 2147483647, got -1"),
        ("--rollout-seed 2147483648", "--rollout-seed must be >= 0 and <= 2147483647, got 214"),
        ("--seed -1 --rollout-seed -1", "--seed must be >= 0 and <= 2147483647, got -1"),
        ("--seed 4294967296", "--seed must be >= 0 and <= 2147483647, got 4294967296"),
    ],
)
def test_what_would_fail_after_the_start_is_refused_before(line: str, text: str) -> None:
    assert text in problems(line)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--eval-temperature 0.5 --skip-eval-before-train", "--eval-temperature, --skip-eval-be"),
        ("--streaming-window 5", "--streaming-window has no effect without --streaming-data"),
        ("--tb-experiment-name x", "no effect without --tb-project-name"),
        ("--wandb-mode offline", "--wandb-mode without --use-wandb"),
        ("--buffer-key hard", "--buffer-key hard has no effect: groups leave the buffer oldest"),
        (
            "--buffer-key hard --buffer-filter-path slime_core.data.selection.oldest_first",
            "--buffer-key hard has no effect",
        ),
        (f"{SFT} --buffer-key hard", "--buffer-key without effect: --loss-type sft_loss"),
        ("--max-staleness 2", "--max-staleness has no effect: generation and training take turns"),
        ("--max-token-staleness 2", "--max-token-staleness has no effect: generation and trai"),
        (f"{SFT} --max-staleness 2", "--max-staleness without effect: --loss-type sft_loss"),
    ],
)
def test_what_nothing_reads_is_told(line: str, text: str) -> None:
    assert text in told(line)
    assert text not in told("")


def test_what_is_read_is_not_told() -> None:
    assert "without effect" not in told("--eval-prompt-data a a.jsonl --eval-temperature 0.5")
    assert "has no effect" not in told("--streaming-data --streaming-window 5")
    assert "has no effect" not in told("--tb-project-name p --tb-experiment-name x")
    assert resolved("--start-rollout-id 2").config.data.start_rollout_id == 2


@pytest.mark.parametrize(
    "line",
    [
        "--buffer-key k --buffer-filter-path slime_core.data.selection.priority",
        "--buffer-key k --buffer-filter-path mine.py:f",
        "--buffer-key k --data-source-path mine.py:Source",
        "--max-staleness 0 --async-buffer-size 1",
        "--max-staleness 2 --max-token-staleness 1 --async-buffer-size 1",
        "--max-staleness 2 --partial-rollout",
        "--max-token-staleness 0 --update-weights-interval 2",
        "--max-staleness 1 --rollout-function-path mine.py:f",
        "--max-staleness 1 --data-source-path mine.py:Source",
    ],
)
def test_a_key_and_a_bound_that_something_reads_are_not_told(line: str) -> None:
    assert "effect" not in told(line)


@pytest.mark.parametrize("seed", [0, 2147483647])
def test_the_smallest_and_the_largest_seed_are_taken(seed: int) -> None:
    config = resolved(f"--seed {seed} --rollout-seed {seed}").config
    assert (config.megatron.seed, config.data.rollout_seed) == (seed, seed)
