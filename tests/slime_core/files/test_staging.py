import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, begin, clean, latest, staged

WRITER = """
import os, signal, sys
from pathlib import Path
import slime_core.files.staging as staging

def write(save, first, last):
    staging.clean(save)
    for iteration in range(first, last):
        with staging.staged(save, iteration) as directory:
            (directory / "rank0").mkdir()
            (directory / "rank0" / "weights").write_text(f"{iteration} " * 1000)
            (directory / "position").write_text(str(iteration))
"""

KILLED_AT_EVERY_CALL = (
    WRITER
    + """
calls, kill_at = 0, 0

def guard(module, name):
    real = getattr(module, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(module, name, call)

root, status = Path(sys.argv[1]), None
for module, name in [(os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"),
                     (os, "rmdir"), (os, "unlink"), (Path, "write_text")]:
    guard(module, name)
while status != 0:
    ready, kill_at = kill_at + 1, 0
    write(root / str(ready), 1, 2)
    calls, kill_at = 0, ready
    child = os.fork()
    if child == 0:
        write(root / str(kill_at), 1, 3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(kill_at)
"""
)

KILLED_ANY_TIME = (
    WRITER
    + """
print("ready", flush=True)
write(Path(sys.argv[1]), int(sys.argv[2]), 1000000)
"""
)


def save_one(save: Path, iteration: int, text: str = "weights") -> None:
    with staged(save, iteration) as directory:
        (directory / "model").mkdir()
        (directory / "model" / "shard").write_text(text)


def test_a_directory_that_is_not_there_yet_needs_no_clearing(tmp_path: Path):
    assert clean(tmp_path / "save") == []


def test_a_checkpoint_appears_under_megatrons_name_and_becomes_the_latest(tmp_path: Path):
    save_one(tmp_path, 7)
    assert latest(tmp_path) == tmp_path / "iter_0000007"
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "7"
    assert (tmp_path / "iter_0000007" / "model" / "shard").read_text() == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000007", TRACKER]


def test_an_exception_leaves_nothing_of_the_attempt(tmp_path: Path):
    save_one(tmp_path, 1)
    with pytest.raises(FileNotFoundError), staged(tmp_path, 2) as directory:
        (directory / "absent" / "file").write_text("a disk error, say")
    assert latest(tmp_path) == tmp_path / "iter_0000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", TRACKER]


def test_a_directory_without_checkpoints_has_no_latest(tmp_path: Path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


def test_a_tracker_that_points_nowhere_names_what_is_there(tmp_path: Path):
    save_one(tmp_path, 3)
    (tmp_path / TRACKER).write_text("9")
    with pytest.raises(CheckpointError, match=r"iter_0000009.*present: iter_0000003"):
        latest(tmp_path)


def test_a_tracker_without_a_number_is_named(tmp_path: Path):
    (tmp_path / TRACKER).write_text("soon")
    with pytest.raises(CheckpointError, match="holds 'soon'"):
        latest(tmp_path)


def test_ckpt_step_picks_an_older_checkpoint_or_says_which_exist(tmp_path: Path):
    save_one(tmp_path, 3)
    save_one(tmp_path, 6)
    assert latest(tmp_path, step=3) == tmp_path / "iter_0000003"
    with pytest.raises(CheckpointError, match=r"--ckpt-step 4 .*iter_0000003, iter_0000006"):
        latest(tmp_path, step=4)
    with pytest.raises(CheckpointError, match=r"^--ref-ckpt-step 4 asks for"):
        latest(tmp_path, step=4, flag="--ref-ckpt-step")


def test_a_converted_checkpoint_called_release_is_found(tmp_path: Path):
    (tmp_path / "release").mkdir()
    (tmp_path / TRACKER).write_text("release\n")
    assert latest(tmp_path) == tmp_path / "release"


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}", '{"files": []}', "\N{DEGREE SIGN}"])
def test_a_manifest_that_lists_no_files_is_damage_and_named(tmp_path: Path, content: str):
    with staged(tmp_path, 1) as directory:
        (directory / "a").write_text("12345")
    manifest = tmp_path / "iter_0000001" / "manifest.json"
    manifest.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError) as caught:
        latest(tmp_path)
    assert str(caught.value) == (
        f"{manifest} does not hold a JSON object with the checkpoint's `files` and their sizes: "
        "the checkpoint is damaged; checkpoints present: iter_0000001"
    )


def test_files_that_a_copy_lost_or_cut_short_are_named(tmp_path: Path):
    with staged(tmp_path, 1) as directory:
        (directory / "a").write_text("12345")
        (directory / "b").write_text("12345")
    (tmp_path / "iter_0000001" / "a").write_text("123")
    (tmp_path / "iter_0000001" / "b").unlink()
    with pytest.raises(CheckpointError, match="a is not 5 bytes; b is missing"):
        latest(tmp_path)


def test_saving_an_iteration_again_replaces_it(tmp_path: Path):
    save_one(tmp_path, 1, "first")
    save_one(tmp_path, 1, "second time")
    assert (tmp_path / "iter_0000001" / "model" / "shard").read_text() == "second time"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", TRACKER]


def test_an_asynchronous_save_is_invisible_until_it_is_committed(tmp_path: Path):
    save_one(tmp_path, 1)
    staging = begin(tmp_path, 2)
    (staging.directory / "shard").write_text("x")
    assert latest(tmp_path) == tmp_path / "iter_0000001"
    assert staging.commit() == tmp_path / "iter_0000002"
    assert latest(tmp_path) == tmp_path / "iter_0000002"


def check_recovers(save: Path, allowed: set[int | None]) -> None:
    """What a restarted run finds is whole, and one of ``allowed``."""
    clean(save)
    found = latest(save)
    number = None if found is None else int(found.name[5:])
    assert number in allowed
    if found is not None:
        assert (found / "position").read_text() == str(number)
        assert (found / "rank0" / "weights").read_text() == f"{number} " * 1000
        assert json.loads((found / "manifest.json").read_text())["iteration"] == number
    assert not [path for path in save.iterdir() if path.name.endswith((".partial", ".replaced"))]


def test_sigkill_before_any_system_call_leaves_a_whole_checkpoint_or_none(tmp_path: Path):
    command = [sys.executable, "-c", KILLED_AT_EVERY_CALL, str(tmp_path)]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    finished = int(done.stdout)
    assert finished > 30
    for kill_at in range(1, finished):
        check_recovers(tmp_path / str(kill_at), {1, 2})
        with staged(tmp_path / str(kill_at), 3):
            pass
        assert latest(tmp_path / str(kill_at)) == tmp_path / str(kill_at) / "iter_0000003"
    check_recovers(tmp_path / str(finished), {2})


def test_sigkill_at_random_times_leaves_a_whole_checkpoint(tmp_path: Path):
    chance = random.Random(0)
    previous = 0
    for _ in range(8):
        command = [sys.executable, "-c", KILLED_ANY_TIME, str(tmp_path), str(previous)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.1))
            writer.kill()
        check_recovers(tmp_path, {None, *range(previous, previous + 100_000)})
        found = latest(tmp_path)
        previous = previous if found is None else int(found.name[5:])
    assert previous > 0


def test_a_converted_checkpoint_is_called_release_and_left_alone_by_iterations(tmp_path):
    with staged(tmp_path, "release") as directory:
        (directory / "weights").write_text("1")
    assert (tmp_path / TRACKER).read_text() == "release"
    assert latest(tmp_path) == tmp_path / "release"
    begin(tmp_path, "release")
    assert clean(tmp_path) == [".release.partial"]
    (tmp_path / "release" / "weights").write_text("12")
    with pytest.raises(CheckpointError, match="weights is not 1 bytes"):
        latest(tmp_path)
