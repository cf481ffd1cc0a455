import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from slime_core.processes.events import FILE_NAME, Events, read_events


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
    events.phase("train", 3, begin=True)
    events.lost("engine", "engine 0", 8, how="hang", seconds=2.00049)
    events.recovered("engine", "engine 0", seconds=4.0)
    events.gave_up("too often")
    found = read_events(path)
    assert all(before <= event.pop("time") <= time.time() for event in found)
    assert found == [
        {"event": "process", "kind": "router", "name": "router", "pid": 7},
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
