import logging
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
from slime_core.reports.run_record import RunRecord

WORDS = ("--lr", "1e-6", "--input-key", "my question")


def test_a_start_leaves_its_command_its_values_and_versions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    RunRecord("slime-train", WORDS, ["[optimizer]", "  lr 1e-6"]).write(tmp_path)
    assert (tmp_path / "config.txt").read_text() == "[optimizer]\n  lr 1e-6\n"
    lines = (tmp_path / "command.txt").read_text().splitlines()
    assert lines[0] == "slime-train --lr 1e-6 --input-key 'my question'"
    assert shlex.split(lines[0]) == ["slime-train", *WORDS]
    assert f"slime-core {version('slime-core')}, " in " ".join(lines)
    assert str(Path.cwd()) in lines[2]
    assert caplog.records[0].getMessage() == lines[0]


def test_a_second_start_keeps_what_the_first_one_was(tmp_path: Path):
    for rate in (1, 1, 2, 3):
        RunRecord("slime-train", ["--lr", str(rate)], [f"lr {rate}"]).write(tmp_path)
    commands = (tmp_path / "command.txt").read_text().splitlines()
    assert [line for line in commands if line.startswith("slime-train")] == [
        f"slime-train --lr {rate}" for rate in (1, 1, 2, 3)
    ]
    found = {path.name: path.read_text() for path in tmp_path.glob("config*")}
    assert found == {"config.txt": "lr 3\n", "config-1.txt": "lr 1\n", "config-2.txt": "lr 2\n"}


def test_a_start_that_is_killed_leaves_no_cut_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(_: int) -> None:
        raise KeyboardInterrupt

    record = RunRecord("slime-train", WORDS, ["lr 1"])
    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        record.write(tmp_path)
    assert not (tmp_path / "config.txt").exists()
    monkeypatch.undo()
    record.write(tmp_path)
    assert (tmp_path / "config.txt").read_text() == "lr 1\n"


def test_a_configuration_that_cannot_be_read_is_kept_and_stops_nothing(tmp_path: Path):
    (tmp_path / "config.txt").write_bytes("prompt_data ä".encode()[:-1])
    RunRecord("slime-train", WORDS, ["lr 1"]).write(tmp_path)
    assert (tmp_path / "config.txt").read_text() == "lr 1\n"
    assert (tmp_path / "config-1.txt").read_bytes() == b"prompt_data \xc3"
