"""Differences on disk: what is written, applied, verified, and refused."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from slime_core.errors import WeightSyncError
from slime_sglang.weights import difference, digests
from slime_sglang.weights.local_copy import NO_BASE, bring
from slime_sglang.weights.version_files import LocalCopySpec, VersionFiles
from slime_sglang.weights.version_index import VersionIndex, read_index
from torch import Tensor

Weights = dict[str, Tensor]


def make_weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(64, 33, generator=generator).bfloat16(),
        "b": torch.randn(7, generator=generator),
        "c": torch.randn(16, 16, generator=generator).bfloat16(),
        "scale": torch.tensor(2.5),
    }


def changed(weights: Weights) -> Weights:
    """Three elements of ``a`` and the only one of ``scale``; ``b`` and ``c`` as they were."""
    new = {name: tensor.clone() for name, tensor in weights.items()}
    new["a"].view(-1)[[0, 40, 2111]] += 1.0
    new["scale"] += 1.0
    return new


class Trainer:
    """Writes versions into ``shared``, as the disk transport does."""

    def __init__(self, tmp_path: Path, spec: LocalCopySpec | None = None) -> None:
        self.shared = tmp_path / "shared"
        self.local = tmp_path / "local"
        self.files = VersionFiles(spec or LocalCopySpec(directory=self.local, delta=True))

    def write(self, version: int, weights: Weights, *, arrived: bool = True) -> Path:
        directory = self.shared / f"weight_v{version:06d}"
        directory.mkdir(parents=True)
        self.files.begin()
        items = list(weights.items())
        self.files.add(directory, items[:2])
        self.files.add(directory, items[2:])
        self.files.finish(directory, version)
        if arrived:
            self.files.arrived(version)
        return directory


def load(directory: Path) -> Weights:
    """What an engine would read."""
    found: Weights = {}
    for path in directory.glob("bucket-*.safetensors"):
        found |= load_file(path)
    return found


def brought(directory: Path) -> Path:
    index = read_index(directory)
    assert index is not None
    return bring(directory, index)


def assert_same(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
@pytest.mark.parametrize("check", ["xxh3-128", "blake3", "adler32"])
def test_versions_made_of_differences_are_the_weights_bit_for_bit(
    tmp_path: Path, encoding: difference.Encoding, check: difference.Checksum
) -> None:
    local = tmp_path / "local"
    spec = LocalCopySpec(directory=local, delta=True, encoding=encoding, checksum=check)
    trainer = Trainer(tmp_path, spec)
    weights = make_weights()
    assert_same(load(brought(trainer.write(1, weights))), weights)
    for version in (2, 3):
        weights = changed(weights)
        directory = trainer.write(version, weights)
        index = read_index(directory)
        assert index is not None
        assert (index.kind, index.base_version) == ("delta", version - 1)
        assert index.changes.keys() == {"a", "scale"}
        there = brought(directory)
        assert_same(load(there), weights)
        known = digests.digests_of(list(weights.items()))
        assert index.result == digests.receipt(known)
    assert [path.name for path in local.glob("weight_v*")] == ["weight_v000003"]


def test_only_what_changed_is_written_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    first = trainer.files.metrics(trainer.write(1, weights))
    assert first["perf/update_weights_density"] == 1.0
    directory = trainer.write(2, changed(weights))
    second = trainer.files.metrics(directory)
    assert second["perf/update_weights_density"] == 4 / (64 * 33 + 7 + 256 + 1)
    assert second["perf/update_weights_wire_bytes"] < first["perf/update_weights_wire_bytes"]
    names = {path.name for path in directory.iterdir()}
    files = {"delta-00000.safetensors", "delta-00001.safetensors"}
    assert names == {*files, "digests.safetensors", "index.json"}
    documented = json.loads((directory / "index.json").read_text())
    assert documented["compression_format"] == "zstd"
    assert documented["delta_encoding"] == "xor"


def test_a_version_that_is_there_already_is_not_brought_again(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    brought(trainer.write(1, weights))
    (trainer.local / ".weight_v000009.partial").mkdir()  # of an engine that was killed
    directory = trainer.write(2, changed(weights))
    there = brought(directory)
    assert {path.name for path in trainer.local.iterdir()} == {".lock", "weight_v000002"}
    before = there.stat().st_ino
    assert brought(directory).stat().st_ino == before  # xor applied twice would be wrong
    assert_same(load(there), changed(weights))


def test_a_copy_of_other_weights_is_never_the_base_of_differences(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    trainer.write(1, weights)
    directory = trainer.write(2, changed(weights))
    with pytest.raises(WeightSyncError, match=NO_BASE):
        brought(directory)  # nothing is there
    other = {name: tensor + 1 for name, tensor in weights.items()}
    spec = LocalCopySpec(directory=trainer.local, delta=True)
    brought(Trainer(tmp_path / "another", spec).write(1, other))
    with pytest.raises(WeightSyncError, match=NO_BASE):
        brought(directory)  # version 1 is there, of another run


def test_an_engine_without_the_base_gets_whole_weights(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    trainer.write(1, weights)
    trainer.write(2, changed(weights))
    whole = tmp_path / "whole"
    whole.mkdir()
    trainer.files.write_whole(whole, 2)
    assert_same(load(brought(whole)), changed(weights))


def test_a_version_that_did_not_arrive_is_not_what_the_next_one_differs_from(
    tmp_path: Path,
) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    trainer.write(1, weights)
    trainer.write(2, changed(weights), arrived=False)
    index = read_index(trainer.write(3, changed(changed(weights))))
    assert index is not None
    assert index.kind == "full"


def test_damaged_differences_are_named_and_leave_the_old_copy(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    weights = make_weights()
    brought(trainer.write(1, weights))
    directory = trainer.write(2, changed(weights))
    index = read_index(directory)
    assert index is not None
    rows = {n: difference_with_other_checksum(c) for n, c in index.changes.items()}
    with pytest.raises(WeightSyncError, match=r"tensor `a` .* xxh3-128 checksum .* expected 00"):
        bring(directory, replaced(index, rows))
    path = directory / "delta-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(WeightSyncError, match=r"damaged|checksum"):
        brought(directory)
    assert [path.name for path in trainer.local.glob("weight_v*")] == ["weight_v000001"]
    assert_same(load(trainer.local / "weight_v000001"), weights)


def difference_with_other_checksum(change: object) -> object:
    from dataclasses import replace

    return replace(change, checksum="00")  # type: ignore[type-var]


def replaced(index: VersionIndex, changes: dict[str, object]) -> VersionIndex:
    from dataclasses import replace

    return replace(index, changes=changes)  # type: ignore[arg-type]


def test_a_copy_that_another_process_never_lets_go_of_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path)
    directory = trainer.write(1, make_weights())
    monkeypatch.setattr("slime_sglang.weights.local_copy._LOCK_S", 0.05)
    trainer.local.mkdir()
    with (trainer.local / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WeightSyncError, match=r"another process has held .*\.lock"):
            brought(directory)
    assert_same(load(brought(directory)), make_weights())


def test_an_index_that_is_not_json_is_named(tmp_path: Path) -> None:
    assert read_index(tmp_path) is None
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(WeightSyncError, match=r"index\.json is damaged"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"weight_map": {}}')  # some other tool's
    assert read_index(tmp_path) is None


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=40),
    encoding=st.sampled_from(["xor", "overwrite"]),
)
def test_a_difference_turns_any_bytes_into_any_others(
    data: list[tuple[int, int]], encoding: difference.Encoding
) -> None:
    old = np.array([a for a, _ in data], dtype="<u2").view(np.uint8)
    new = np.array([b for _, b in data], dtype="<u2").view(np.uint8)
    made = difference.encode(old, new, 2, encoding)
    assert difference.apply(old, made, 2, encoding).tolist() == new.tolist()
    if encoding == "overwrite":
        assert difference.apply(new, made, 2, encoding).tolist() == new.tolist()
    assert difference.num_changed(old, new, 2) == sum(a != b for a, b in data)
