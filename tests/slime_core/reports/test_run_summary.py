from pathlib import Path

import pytest
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.files.staging import begin
from slime_core.processes.sentinel import Terminated
from slime_core.reports.run_summary import duration, finished, interrupted, stopped


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A --save directory whose newest checkpoint is that after iteration 9."""
    begin(tmp_path / "ck", 9).commit()
    return tmp_path / "ck"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.7, "1 min 0 s"), (3600.0, "1 h 0 min 0 s"), (90061.0, "25 h 1 min 1 s")],
)
def test_a_duration_has_no_leading_zeros(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_last_words_say_where_everything_is(saved: Path, tmp_path: Path):
    weights = tmp_path / "hf-8"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    config = CheckpointConfig(save=str(saved), save_hf=f"{tmp_path}/hf-{{rollout_id}}")
    assert finished(tmp_path, 65.0, config, range(10)).splitlines() == [
        "finished in 1 min 5 s",
        f"  metrics     {tmp_path}/metrics.jsonl",
        f"  logs        {tmp_path}/logs",
        f"  checkpoint  {saved}/iter_0000009",
        f"  weights     {weights} (Hugging Face)",
    ]


def test_weights_that_are_nowhere_are_said_to_be(tmp_path: Path):
    def last_line(config: CheckpointConfig, iterations: range) -> str:
        return finished(tmp_path, 1.0, config, iterations).splitlines()[-1]

    assert last_line(CheckpointConfig(), range(2)).endswith("not saved: no --save, no --save-hf")
    empty = CheckpointConfig(save=str(tmp_path))
    assert last_line(empty, range(2)).endswith("none were written")
    assert last_line(empty, range(0)).startswith("  logs"), "nothing was trained"


def test_an_interruption_says_how_to_go_on(saved: Path, tmp_path: Path):
    assert interrupted(str(saved)) == (
        f"{saved}/iter_0000009 is saved; the same command goes on from there"
    )
    assert interrupted(None).startswith("nothing was saved, as there is no --save")
    assert interrupted(str(tmp_path)).startswith("nothing was saved yet in --save")


def test_a_damaged_checkpoint_does_not_hide_how_a_run_ended(saved: Path):
    (saved / "latest_checkpointed_iteration.txt").write_text("torn")
    assert interrupted(str(saved)).startswith("nothing was saved yet")


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; "),
        (Terminated("ended by SIGTERM"), 143, "ended by"),
    ],
)
def test_an_end_from_outside_has_its_code_and_its_words(end, code, words, tmp_path, capsys):
    assert stopped(end, tmp_path, None) == code
    told = capsys.readouterr().err
    assert f"slime-train: {words}" in told
    assert f"logs: {tmp_path}/logs" in told
