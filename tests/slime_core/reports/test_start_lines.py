import re

import pytest
from slime_core.processes.events import FILE_NAME, Events
from slime_core.reports.start_lines import StartLines


def test_steps_of_this_start_are_told_once_in_the_order_in_which_they_were_done(tmp_path):
    path, said = tmp_path / FILE_NAME, []
    Events(path).started("Ray up", 9.0)  # of an earlier start
    lines = StartLines(path, said.append)
    look = lines.after(lambda: None)
    look()
    assert said == []
    Events(path).started("router up", 0.94)
    Events(path).process("engine", "engine 0")
    Events(path).started("engine 1 of 2 up", 12.34)
    look()
    look()
    assert said == ["  router up in 0.9 s", "  engine 1 of 2 up in 12.3 s"]
    Events(path).started("engine 2 of 2 up", 13.0)
    lines.ready("iterations to go: 3")
    assert said[2] == "  engine 2 of 2 up in 13.0 s"
    assert re.fullmatch(r"ready after \d\.\d s; iterations to go: 3", said[3])


def test_a_process_that_is_lost_ends_the_wait_before_anything_is_told(tmp_path):
    path, said = tmp_path / FILE_NAME, []
    lines = StartLines(path, said.append)
    lines.done("Ray up")
    assert re.fullmatch(r"  Ray up in \d\.\d s", *said)
    Events(path).started("router up", 1.0)

    def lost():
        raise RuntimeError("trainer rank 0 has ended")

    with pytest.raises(RuntimeError, match="rank 0"):
        lines.after(lost)()
    assert len(said) == 1
