import json
from pathlib import Path

from slime_core.files.aside import set_aside


def test_a_file_is_set_aside_under_the_first_free_name(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        path.write_text(json.dumps(number))
        assert set_aside(path) == tmp_path / f"metrics-{number}.jsonl"
    assert not path.exists()
    assert (tmp_path / "metrics-1.jsonl").read_text() == "1"


def test_a_directory_keeps_its_name_and_gets_a_number_behind_it(tmp_path: Path):
    path = tmp_path / "run.v2"
    for number in (1, 2):
        path.mkdir()
        (path / "made").write_text(str(number))
        assert set_aside(path) == tmp_path / f"run.v2.{number}"
    assert not path.exists()
    assert (tmp_path / "run.v2.1" / "made").read_text() == "1"
