import io

import pytest
from slime_core.reports.iteration_rows import evaluations, header, row
from slime_core.reports.progress import Progress
from slime_train.console import Console
from slime_train.loop import Cadence


def test_a_row_shows_what_is_known_and_dashes_for_the_rest():
    numbers = {"rollout/raw_reward": 0.5, "perf/actor_train_tok_per_s": 12345.6, "seconds": 1.5}
    assert header() == (
        "iteration  reward  accuracy   length       loss  grad norm    tok/s  seconds"
    )
    assert row(7, numbers) == (
        "        7   0.500         -        -          -          -   12,346     1.50"
    )


def test_a_row_tells_of_samples_that_failed():
    assert row(0, {"rollout/failed_ratio": 0.25}).endswith("-  failed_ratio 0.250")
    assert row(0, {"rollout/failed_ratio": 0.0}) == row(0, {})


def test_a_tiny_negative_loss_has_no_sign():
    assert row(0, {"train/loss": -1e-9}).split()[4] == "0.00000"


def test_only_the_mean_reward_of_a_set_is_its_accuracy():
    metrics = {"eval/sums": 0.25, "eval/sums/response_len/mean": 9.0, "eval/sums-pass@1": 0.5}
    assert evaluations(metrics) == {"sums": 0.25}


def test_where_there_is_no_terminal_rows_and_messages_are_all_there_is():
    stream = io.StringIO()
    with Console(stream) as console:
        console.begin(Cadence(first=0, last=2))
        console.progress(Progress("generating", 1, 2))
        console.log(0, {"eval/sums": 0.25})
        console.log(0, {"rollout/raw_reward": 0.5})
        console.log(0, {"train/loss": 1.0})
        console.progress(None)
        console.say("saved [somewhere]")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluation before training: sums 0.250"
    assert lines[1] == header()
    assert lines[2].split()[:5] == ["0", "0.500", "0.250", "-", "1.00000"]
    assert lines[3:] == ["saved [somewhere]"]


@pytest.mark.parametrize("columns", [60, 200])
def test_a_row_is_never_broken_by_a_narrow_window(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    with Console(stream) as console:
        console.log(0, {"train/loss": 1.0})
    assert len(stream.getvalue().splitlines()) == 2
