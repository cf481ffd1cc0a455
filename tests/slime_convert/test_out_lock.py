"""Two conversions to one --out: the second is told, and a killed one is in nobody's way."""

import contextlib
import fcntl
from pathlib import Path

import pytest
from slime_convert import cli
from slime_convert.dist import hf_to_dist
from slime_convert.target import out_lock
from slime_convert.target.out_lock import INSIDE, beside, sole_writer
from slime_core.errors import CheckpointError
from slime_testing.checkpoints import hf_tensors, same_bytes
from slime_testing.tiny import make_qwen3


def command(name: str, tmp_path: Path) -> tuple[list[str], Path, Path]:
    """A command line, its --out and the file that is locked."""
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "out"
    if name == "hf-to-dist":
        return [name, "--hf", f"{source}", "--out", f"{out}"], out, out / INSIDE
    if name == "cast":
        return [name, "--hf", f"{source}", "--out", f"{out}", "--dtype", "bf16"], out, beside(out)
    dist = hf_to_dist(source, tmp_path / "dist")
    given = ["--dist", f"{dist}", "--hf-config", f"{source}", "--out", f"{out}"]
    return [name, *given], out, beside(out)


@pytest.mark.parametrize("name", ["hf-to-dist", "dist-to-hf", "cast"])
def test_the_second_conversion_to_a_directory_is_told(tmp_path, capsys, name):
    given, out, lock = command(name, tmp_path)
    with sole_writer(out, lock):
        assert cli.main(given) == 1
        said = capsys.readouterr().err
        assert f"another conversion is writing {out}: wait until it has ended" in said
        assert said.count("\n") == 1
        assert lock.exists()
    assert not lock.exists()
    lock.parent.mkdir(exist_ok=True)
    lock.touch()  # of a process that was killed
    assert cli.main(given) == 0
    assert not lock.exists()


def test_a_link_to_a_directory_is_that_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert beside(tmp_path / "link") == beside(tmp_path / "real") == tmp_path / ".real.lock"


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Between opening and locking, its owner ends: others would lock a new file of that name."""
    lock, calls = tmp_path / ".out.lock", 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            lock.unlink()
        original(descriptor, operation)

    original = fcntl.flock
    monkeypatch.setattr(out_lock.fcntl, "flock", flock)
    with contextlib.ExitStack() as first:
        first.enter_context(sole_writer(tmp_path / "out", lock))
        assert calls == 2
        with pytest.raises(CheckpointError, match="another conversion"):
            first.enter_context(sole_writer(tmp_path / "out", lock))


def test_where_nothing_can_be_locked_conversions_run(tmp_path, monkeypatch):
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(out_lock.fcntl, "flock", flock)
    source = make_qwen3(tmp_path / "hf")
    assert cli.main(["hf-to-dist", "--hf", f"{source}", "--out", f"{tmp_path / 'dist'}"]) == 0
    with pytest.raises(CheckpointError, match="cannot write"):
        hf_to_dist(source, source / "config.json" / "out")
    given = ["dist-to-hf", "--dist", f"{tmp_path / 'dist'}", "--hf-config", f"{source}"]
    assert cli.main([*given, "--out", f"{tmp_path / 'back'}"]) == 0
    assert same_bytes(hf_tensors(tmp_path / "back"), hf_tensors(source))
