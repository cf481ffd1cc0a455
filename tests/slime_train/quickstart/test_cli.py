import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from slime_core.errors import ConfigError
from slime_train.quickstart import cli, commands
from slime_train.quickstart.task import write_task


def test_a_directory_of_somebody_elses_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match=r"--output-dir .* holds files"):
        cli.prepare(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_quickstart_moves_aside_and_that_is_said(tmp_path: Path, capsys):
    directory = tmp_path / "new" / "run"
    for number in (1, 2):
        cli.prepare(directory)
        (directory / "summary.json").write_text(str(number))
    cli.prepare(directory)
    assert [path.name for path in directory.iterdir()] == [cli.MARKER]
    said = capsys.readouterr().out
    for number in (1, 2):
        aside = tmp_path / "new" / f"run.{number}"
        assert (aside / "summary.json").read_text() == str(number)
        assert f"left in {directory} is now in {aside}" in said


def test_a_quickstart_that_made_nothing_leaves_nothing_to_move(tmp_path: Path, capsys):
    cli.prepare(tmp_path / "run")
    cli.prepare(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert capsys.readouterr().out == ""


def test_a_quickstart_that_cannot_be_moved_is_left_alone(tmp_path: Path, monkeypatch):
    cli.prepare(tmp_path / "run")
    (tmp_path / "run" / "summary.json").touch()

    def fixed(self, target):
        raise OSError(16, "Device or resource busy", str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", fixed)
    with pytest.raises(ConfigError, match=r"cannot be moved to .*run\.1 \(Device or resource busy"):
        cli.prepare(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("seed", ["-1", "2147483648", "1.5"])
def test_a_seed_that_the_runs_would_refuse_is_refused_before_anything_is_made(
    seed: str, tmp_path: Path, capsys
):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--output-dir", str(tmp_path / "run"), "--seed", seed])
    assert ended.value.code == 2
    told = f"argument --seed: expects a number from 0 to 2147483647, got {seed}"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_in_place_of_the_directory_is_an_error_of_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "slime_train.quickstart.cli", "--output-dir", "file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is a file" in done.stderr


@pytest.mark.parametrize("command", [commands.warm_up, commands.reinforce])
def test_what_is_printed_is_what_is_run_and_slime_train_takes_it(command, tmp_path: Path):
    model = cli.write_model(tmp_path / "a model", seed=0)
    words = command(model, write_task(tmp_path / "data", seed=0), tmp_path / "out", seed=0)
    assert shlex.split(commands.printable(words).replace("\\\n", "")) == words
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [program, *words[1:], "--dump-config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
