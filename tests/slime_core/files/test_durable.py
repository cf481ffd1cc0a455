import pytest
from slime_core.files import durable
from slime_core.files.durable import replace_file, sync_tree


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "latest.txt"
    replace_file(path, "1")
    replace_file(path, "2 é")
    assert path.read_text(encoding="utf-8") == "2 é"
    assert [p.name for p in tmp_path.iterdir()] == ["latest.txt"]


def test_a_crash_before_the_rename_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "latest.txt"
    replace_file(path, "old")

    def crash(_):
        raise OSError("power cut")

    monkeypatch.setattr(durable, "sync", crash)
    with pytest.raises(OSError, match="power cut"):
        replace_file(path, "new")
    assert path.read_text() == "old"


def test_every_file_and_every_directory_of_a_tree_is_synced(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    synced = []
    monkeypatch.setattr(durable, "sync", synced.append)
    sync_tree(tmp_path)
    expected = {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"}
    assert set(synced) == expected
    assert synced[-1] == tmp_path
