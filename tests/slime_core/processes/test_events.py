import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from slime_core.processes.events import FILE_NAME, Events, News, keep_in, read_events, starting


def record_many(path, name):
    for i in range(200):
        Events(path).process("engine", f"{name} {i} {'x' * 300}")


RECORD = """
import sys
from pathlib import Path
from slime_core.processes.events import Events
for i in range(200):
    Events(Path(sys.argv[1])).process("engine", f"{sys.argv[2]} {i} " + 300 * "x")
"""


def test_lines_of_many_processes_and_threads_never_mix(tmp_path):
    path = tmp_path / "run" / FILE_NAME
    processes = [
        subprocess.Popen([sys.executable, "-c", RECORD, str(path), f"p{i}"]) for i in range(2)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: record_many(path, name), "abcd"))
    assert [process.wait(120) for process in processes] == [0, 0]
    events = read_events(path)
    assert len(events) == len({event["name"] for event in events}) == 6 * 200
    assert len({event["pid"] for event in events}) == 3


def test_an_event_says_when_and_who(tmp_path):
    path = tmp_path / FILE_NAME
    events = Events(path)
    before = time.time()
    events.process("router", "router", pid=7)
    events.started("router up", 0.12345)
    events.phase("train", 3, begin=True)
    events.lost("engine", "engine 0", 8, how="hang", seconds=2.00049)
    events.recovered("engine", "engine 0", seconds=4.0)
    events.gave_up("too often")
    found = read_events(path)
    assert all(before <= event.pop("time") <= time.time() for event in found)
    assert found == [
        {"event": "process", "kind": "router", "name": "router", "pid": 7},
        {"event": "started", "what": "router up", "seconds": 0.123, "pid": os.getpid()},
        {"event": "phase", "name": "train", "iteration": 3, "begin": True, "pid": os.getpid()},
        {
            "event": "lost", "kind": "engine", "name": "engine 0", "pid_lost": 8, "how": "hang",
            "seconds": 2.0, "pid": os.getpid(),
        },
        {"event": "recovered", "kind": "engine", "name": "engine 0", "seconds": 4,
         "pid": os.getpid()},
        {"event": "gave_up", "reason": "too often", "pid": os.getpid()},
    ]  # fmt: skip


def test_a_line_being_written_is_not_read(tmp_path):
    path = tmp_path / FILE_NAME
    assert read_events(path) == []
    Events(path).gave_up("whole")
    with path.open("a") as file:
        file.write(json.dumps({"event": "half"})[:-1])
    assert [event["event"] for event in read_events(path)] == ["gave_up"]


def test_news_are_what_others_append_and_come_once_and_whole(tmp_path):
    path = tmp_path / FILE_NAME
    assert News(path).read() == []
    Events(path).gave_up("an earlier run")
    news = News(path)
    assert news.read() == []
    Events(path).gave_up("a")
    Events(path).gave_up("b")
    line = json.dumps({"event": "gave_up", "reason": "c"})
    with path.open("a") as file:
        file.write(line[:9])
    assert [event["reason"] for event in news.read()] == ["a", "b"]
    assert news.read() == []
    with path.open("a") as file:
        file.write(f"{line[9:]}\n")
    assert [event["reason"] for event in news.read()] == ["c"]


def test_a_step_of_the_start_is_recorded_once_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_core.processes.events._own", [])
    with starting("nobody keeps this"):
        pass
    keep_in(path := tmp_path / FILE_NAME)
    with starting("done"):
        time.sleep(0.02)
        assert read_events(path) == []
    with pytest.raises(ZeroDivisionError), starting("failed"):
        1 / 0  # noqa: B018
    (event,) = read_events(path)
    assert (event["event"], event["what"]) == ("started", "done")
    assert 0.02 <= event["seconds"] < 5


def test_a_line_that_was_cut_short_is_no_news_and_hides_no_other(tmp_path):
    path = tmp_path / FILE_NAME
    news = News(path)
    Events(path).gave_up("a")
    with path.open("a") as file:
        file.write('{"event": "gave_\n')
    Events(path).gave_up("b")
    assert [event["reason"] for event in news.read()] == ["a", "b"]
    path.unlink()
    assert news.read() == []


def test_a_line_that_a_killed_run_cut_hides_no_event(tmp_path):
    path = tmp_path / FILE_NAME
    Events(path).gave_up("a")
    with path.open("ab") as file:
        file.write('{"event": "gave_up", "reason": "ä'.encode()[:-1])
    Events(path).gave_up("b")
    Events(path).gave_up("c")
    assert [event["reason"] for event in read_events(path)] == ["a", "b", "c"]
