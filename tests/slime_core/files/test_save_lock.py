"""Two runs never save into one directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slime_core.errors import CheckpointError
from slime_core.files.save_lock import sole_writer

_HOLD = """
import sys
from slime_core.files.save_lock import sole_writer
with sole_writer(sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_told_who_saves_there_until_that_one_is_killed(tmp_path: Path) -> None:
    save = str(tmp_path / "not" / "there")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, save], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mine\n"
        told = rf"--save {save} belongs to another run .*: pid {holder.pid} on .* of its own"
        with pytest.raises(CheckpointError, match=told), sole_writer(save):
            pytest.fail("both own it")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    with sole_writer(save), sole_writer(None):
        pass
    with sole_writer(save):
        pass


def test_processes_that_outlive_the_driver_do_not_keep_the_directory(tmp_path: Path) -> None:
    with sole_writer(str(tmp_path)):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
    with child, sole_writer(str(tmp_path)):
        child.kill()


def test_a_directory_that_cannot_be_made_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = r"--save .*file/save cannot be written to"
    with pytest.raises(CheckpointError, match=told), sole_writer(f"{tmp_path}/file/save"):
        pytest.fail("there is no such directory")
