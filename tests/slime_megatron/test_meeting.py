from pathlib import Path

from slime_megatron.meeting import Meeting


def test_two_runs_in_one_directory_meet_at_places_of_their_own(tmp_path: Path) -> None:
    ours, theirs = Meeting(tmp_path), Meeting(tmp_path)
    assert ours.address.startswith(f"file://{tmp_path}/.rendezvous-")
    for address in (ours.address, f"{ours.address}-critic", theirs.address):
        Path(address.removeprefix("file://")).touch()
    ours.close()
    assert [f"file://{path}" for path in tmp_path.iterdir()] == [theirs.address]
