import os

from slime_core.files.writable import obstacle


def test_missing_directories_count_as_made(tmp_path):
    assert obstacle(tmp_path / "a" / "b" / "c.pt") is None


def test_a_file_above_is_told_by_its_name(tmp_path):
    (tmp_path / "a").write_text("")
    assert obstacle(tmp_path / "a" / "b" / "c.pt") == f"{tmp_path / 'a'} is no directory"


def test_a_link_that_leads_nowhere_is_no_directory(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    assert obstacle(tmp_path / "a" / "c.pt") == f"{tmp_path / 'a'} is no directory"


def test_a_directory_that_nothing_may_be_made_in_is_told_and_not_what_is_above(
    tmp_path, monkeypatch
):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "a")
    assert obstacle(tmp_path / "a" / "b" / "c.pt") == f"{tmp_path / 'a'} cannot be written to"
    assert obstacle(tmp_path / "c.pt") is None
