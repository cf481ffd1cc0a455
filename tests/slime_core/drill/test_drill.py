"""The drill against a scripted run, whose faults have known ends."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from slime_core.drill import report
from slime_core.drill.attempt import Hit, first_iteration, underway, usual_lengths
from slime_core.drill.cli import main
from slime_core.drill.kills import try_driver_kills
from slime_core.drill.plan import PHASES, Cell, Kill, cells, driver_kills
from slime_core.drill.trained import Outcome, compare, trained_samples, weights_digest
from slime_core.drill.tries import (
    FINISHED,
    Drill,
    Row,
    Undisturbed,
    reaction,
    run_flags,
)
from slime_core.errors import ConfigError
from slime_testing import scripted_run
from slime_testing.scripted_run import prepare_dumps

SCRIPT = Path(scripted_run.__file__)


def drilled(directory: Path, *words: str, behave: str = "well", expect: int = 0) -> list[dict]:
    dumps = directory / "dumps"
    dumps.mkdir()
    prepare_dumps(dumps)
    run = ("--", sys.executable, str(SCRIPT), "--behave", behave, "--dumps", str(dumps))
    assert main(["--output-dir", str(directory), "--timeout-s", "20", *words, *run]) == expect
    return json.loads((directory / "drill.json").read_text())["rows"]


@pytest.mark.parametrize("fault", ["KILL", "STOP"])
def test_an_engine_that_is_replaced_costs_nothing(tmp_path, fault):
    words = ("--kinds", "engine", "--signals", fault, "--phases", "train")
    (row,) = drilled(tmp_path, *words)
    assert row["ended"] == FINISHED
    assert 0 <= row["detected_s"] < 2
    assert 0 <= row["recovered_s"] < 2
    assert (row["samples_lost"], row["samples_duplicated"]) == (0, 0)
    assert row["weights_equal"] is True


def test_faults_in_a_row_share_a_run_and_what_came_of_it(tmp_path):
    words = ("--kinds", "engine,driver", "--signals", "KILL", "--phases", "train,save")
    rows = drilled(tmp_path, "--in-a-row", *words)
    assert [(row["kind"], row["phase"]) for row in rows] == [
        ("engine", "train"),
        ("engine", "save"),
        ("driver", "train"),
        ("driver", "save"),
    ]
    for row in rows:
        assert (row["ended"], row["faults_in_run"]) == (FINISHED, 2)
        assert row["weights_equal"] is True
        assert 0 <= row["recovered_s"] < 20
    assert sorted(path.name for path in tmp_path.glob("*-in-a-row")) == [
        "driver-in-a-row",
        "engine-in-a-row",
    ]


def test_faults_in_a_row_that_end_the_run_leave_the_others_untried(tmp_path):
    words = ("--kinds", "engine", "--signals", "KILL", "--phases", "generate,train,save")
    rows = drilled(tmp_path, "--in-a-row", *words, behave="blind", expect=1)
    ends = [row["ended"] for row in rows]
    assert ends == ["gave up: the engine is gone", "not tried", "not tried"]


def test_the_undisturbed_run_of_the_same_command_is_made_once(tmp_path, capsys):
    words = ("--kinds", "engine", "--signals", "KILL", "--phases", "train")
    drilled(tmp_path, *words)
    made = (tmp_path / "undisturbed" / "events.jsonl").stat().st_mtime_ns
    run = ("--", sys.executable, str(SCRIPT), "--behave", "well", "--dumps")
    assert main(["--output-dir", str(tmp_path), *words, *run, str(tmp_path / "dumps")]) == 0
    assert (tmp_path / "undisturbed" / "events.jsonl").stat().st_mtime_ns == made


@pytest.mark.parametrize(("behave", "lost", "twice"), [("forgetful", 2, 0), ("greedy", 0, 2)])
def test_samples_that_are_lost_or_trained_twice_are_counted(tmp_path, behave, lost, twice):
    words = ("--kinds", "engine", "--signals", "KILL", "--phases", "train")
    (row,) = drilled(tmp_path, *words, behave=behave, expect=1)
    assert (row["samples_lost"], row["samples_duplicated"]) == (lost, twice)


def test_a_run_that_gives_up_says_why(tmp_path):
    words = ("--kinds", "engine", "--signals", "KILL", "--phases", "publish")
    (row,) = drilled(tmp_path, *words, behave="blind", expect=1)
    assert row["ended"] == "gave up: the engine is gone"
    assert row["weights_equal"] is None


def test_a_killed_driver_is_started_again_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_core.drill.tries.DRIVER_PAUSE_S", 0.3)
    killed, stopped = drilled(tmp_path, "--kinds", "driver", "--phases", "generate")
    assert killed["ended"] == stopped["ended"] == FINISHED
    assert killed["weights_equal"]
    assert stopped["weights_equal"]
    assert killed["recovered_s"] > 0


def test_a_kind_that_no_process_is_of_is_a_failure(tmp_path):
    words = ("--kinds", "router", "--signals", "KILL", "--phases", "train")
    (row,) = drilled(tmp_path, *words, expect=1)
    assert row["ended"] == "no such process"


def test_a_driver_killed_many_times_ends_like_one_that_was_not(tmp_path, capsys):
    (row,) = drilled(tmp_path, "--driver-kills", "3", "--seed", "1")
    assert row["ended"] == FINISHED
    assert 1 <= row["kills"] <= 3
    assert row["weights_equal"] is True
    assert (row["samples_lost"], row["samples_duplicated"]) == (0, 0)
    assert "weights" in capsys.readouterr().out


def test_a_driver_that_fails_by_itself_between_kills_is_not_started_again(tmp_path):
    drill = Drill((sys.executable, "-c", "raise SystemExit(3)"), tmp_path, 20.0)
    said: list[str] = []
    undisturbed = Undisturbed(1.0, 0.5, Outcome(None, Counter()))
    kills = [Kill("train", 0, 0.5)] * 2
    row = try_driver_kills(drill, kills, undisturbed, said.append)
    assert (row.ended, row.kills) == ("exit code 3", 0)
    assert said == ["before kill 1: exit code 3"]


def test_places_that_the_drill_chooses_are_not_given(tmp_path, capsys):
    assert main(["--output-dir", str(tmp_path), "--", "--save", "x"]) == 1
    assert "--save: the drill gives each run its own" in capsys.readouterr().err


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="--kinds motor: give some of engine"):
        cells(["motor"], ["KILL"], ["train"])


def test_cells_are_every_combination():
    found = cells(["engine", "driver"], ["STOP", "KILL"], ["train", "save"])
    assert [cell.name for cell in found][:3] == [
        "engine-KILL-train",
        "engine-KILL-save",
        "engine-STOP-train",
    ]
    assert len(found) == 8


def test_kills_are_the_same_for_a_seed_and_spread_over_all_phases():
    kills = driver_kills(20, seed=3)
    assert kills == driver_kills(20, seed=3) != driver_kills(20, seed=4)
    assert Counter(kill.phase for kill in kills) == dict.fromkeys(("start", *PHASES), 4)
    assert {kill.iteration for kill in kills} == {0, 1}


def test_the_phase_under_way_and_usual_lengths_are_read_from_the_events():
    def phase(name: str, time: float, *, begin: bool) -> dict:
        return {"event": "phase", "name": name, "iteration": 3, "begin": begin, "time": time}

    events = [{"event": "process"}, phase("train", 1.0, begin=True)]
    assert (underway(events[:1]), first_iteration(events[:1])) == ("start", None)
    assert (underway(events), first_iteration(events)) == ("train", 3)
    events += [phase("train", 2.0, begin=False)]
    assert underway(events) == "between"
    events += [phase("train", 5.0, begin=True), phase("train", 8.0, begin=False)]
    assert usual_lengths(events) == {"train": 2.0}


def test_the_command_saves_after_every_iteration_unless_told_otherwise():
    assert run_flags(Path("d"), ["--lr", "1"])[-2:] == ["--save-interval", "1"]
    assert "--save-interval" not in run_flags(Path("d"), ["--save-interval", "4"])


def test_a_reaction_is_read_from_the_events_after_the_signal():
    lost = {"event": "lost", "kind": "engine", "pid_lost": 7}
    events = [
        {**lost, "time": 1.0},
        {**lost, "time": 12.5},
        {"event": "recovered", "kind": "router", "time": 13.0},
        {"event": "recovered", "kind": "engine", "time": 15.0},
    ]
    assert reaction(events, "engine", Hit(time=10.0, pid=7)) == (2.5, 2.5)
    assert reaction(events[:1], "engine", Hit(time=10.0, pid=7)) == (None, None)


def test_samples_are_told_apart_by_prompt_number_and_tokens(tmp_path):
    def sample(index: int, tokens: list[int]) -> dict:
        return {"group_index": 0, "index": index, "prompt": "p", "tokens": tokens}

    torch.save({"groups": [{"samples": [sample(0, [1]), sample(1, [1])]}]}, tmp_path / "0.pt")
    before = trained_samples(tmp_path)
    torch.save({"groups": [{"samples": [sample(0, [2]), sample(0, [1])]}]}, tmp_path / "0.pt")
    apart = compare(Outcome("a", before), Outcome("b", trained_samples(tmp_path)))
    assert (apart.lost, apart.duplicated, apart.weights_equal) == (1, 1, False)
    same = compare(Outcome("a", before), Outcome("a", Counter(before)))
    assert (same.lost, same.duplicated, same.other_tokens, same.weights_equal) == (0, 0, 0, True)


def test_weights_differ_by_name_and_by_content(tmp_path):
    assert weights_digest(tmp_path) is None
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = weights_digest(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert weights_digest(tmp_path) != first


def test_rows_are_written_and_read_again(tmp_path):
    cell = Cell("engine", "KILL", "train")
    row = Row(kind=cell.kind, fault=cell.fault, phase=cell.phase, ended=FINISHED, detected_s=1.5)
    report.write(tmp_path / "drill.json", {"seed": 0}, [row])
    assert report.read(tmp_path / "drill.json") == [row]
    head, line = report.table([row])
    assert head.split()[:2] == ["process", "signal"]
    assert line.split() == ["engine", "KILL", "train", "finished", "1.5", *"-----"]
