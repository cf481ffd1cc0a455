"""Files of a version as the trainer writes them: whole, or what changed since the last one."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from slime_core.config.sync import WeightSyncConfig

from slime_sglang.weights.difference import (
    Bytes,
    Checksum,
    Encoding,
    bytes_of,
    checksum,
    encode,
    num_changed,
)
from slime_sglang.weights.digests import NamedTensors, digests_of, receipt
from slime_sglang.weights.disk_format import write_digests, write_shard
from slime_sglang.weights.version_index import Change, VersionIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopySpec:
    """That engines keep a copy, and how changes to it are written."""

    directory: Path
    """On each engine's machine."""
    delta: bool = False
    encoding: Encoding = "xor"
    checksum: Checksum = "xxh3-128"

    @classmethod
    def of(cls, config: WeightSyncConfig) -> "LocalCopySpec | None":
        """What the flags say; None where engines read what the trainer writes."""
        if config.update_weight_local_checkpoint_dir is None:
            return None
        return cls(
            directory=Path(config.update_weight_local_checkpoint_dir).absolute(),
            delta=config.update_weight_mode == "delta",
            encoding=config.update_weight_delta_encoding,
            checksum=config.update_weight_delta_checksum,
        )


@dataclass(slots=True)
class _Kept:
    """What the engines' copies hold, on the trainer's side."""

    version: int
    result: str


class VersionFiles:
    """Writes one version after another; lives in the trainer's process.

    With differences it keeps a copy of all weights in host memory.
    """

    def __init__(self, local: LocalCopySpec | None) -> None:
        self._local = local
        self._weights: dict[str, tuple[Bytes, torch.dtype, torch.Size]] = {}
        self._base: _Kept | None = None
        """What is known to be on the engines' machines; None until a whole version was loaded."""
        self._from: _Kept | None = None
        """The base of the version being written; None when it is whole."""
        self._digests: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        self._num_files = self._num_elements = self._num_changed = 0

    @property
    def receipt(self) -> str:
        """Over the digests of what was added."""
        return receipt(self._digests)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self._digests

    def begin(self) -> None:
        """Another version; it is whole unless the last one is known to have arrived."""
        self._from, self._base = self._base, None
        self._digests, self._changes = {}, {}
        self._num_files = self._num_elements = self._num_changed = 0

    def add(self, directory: Path, tensors: NamedTensors) -> None:
        """Write one bucket as one file."""
        self._digests |= digests_of(tensors)
        tensors = [(name, tensor.detach().contiguous().cpu()) for name, tensor in tensors]
        self._num_elements += sum(tensor.numel() for _, tensor in tensors)
        if self._from is None:
            write_shard(directory, self._num_files, tensors)
            self._num_changed = self._num_elements
        else:
            self._add_changes(directory, tensors)
        self._num_files += 1
        if self._local is not None and self._local.delta:
            for name, tensor in tensors:
                self._weights[name] = (bytes_of(tensor).copy(), tensor.dtype, tensor.shape)

    def finish(self, directory: Path, version: int) -> None:
        """Write digests and, for engines with copies, the index."""
        write_digests(directory, self._digests)
        self._write_index(directory, version, self._from)

    def write_whole(self, directory: Path, version: int) -> None:
        """What was added, whole, for an engine that lacks the base."""
        tensors = [
            (name, torch.from_numpy(data).view(dtype).reshape(shape))
            for name, (data, dtype, shape) in self._weights.items()
        ]
        write_shard(directory, 0, tensors)
        write_digests(directory, self._digests)
        self._write_index(directory, version, None)

    def arrived(self, version: int) -> None:
        """Every engine has loaded it."""
        if self._local is not None and self._local.delta:
            self._base = _Kept(version, self.receipt)

    def metrics(self, directory: Path) -> dict[str, float]:
        """Bytes on disk, and the share of elements that changed."""
        size = sum(path.stat().st_size for path in directory.iterdir())
        density = self._num_changed / max(1, self._num_elements)
        return {
            "perf/update_weights_wire_bytes": float(size),
            "perf/update_weights_density": density,
        }

    def _add_changes(self, directory: Path, tensors: NamedTensors) -> None:
        assert self._local is not None, "differences are for engines with copies"
        file = f"delta-{self._num_files:05d}.safetensors"
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            found = list(pool.map(self._difference, tensors))
        written: dict[str, Any] = {}
        for name, number, difference, check, itemsize in filter(None, found):
            self._num_changed += number
            written[name] = torch.frombuffer(bytearray(difference), dtype=torch.uint8)
            self._changes[name] = Change(file=file, checksum=check, itemsize=itemsize)
        if written:
            save_file(written, directory / file)

    def _difference(
        self, item: tuple[str, torch.Tensor]
    ) -> tuple[str, int, bytes, str, int] | None:
        """Name, number of changed elements, difference, checksum; None when nothing changed."""
        assert self._local is not None, "differences are for engines with copies"
        name, tensor = item
        new, itemsize = bytes_of(tensor), tensor.element_size()
        old = self._weights[name][0]
        number = num_changed(old, new, itemsize)
        if not number:
            return None
        difference = encode(old, new, itemsize, self._local.encoding)
        return name, number, difference, checksum(new, self._local.checksum), itemsize

    def _write_index(self, directory: Path, version: int, base: _Kept | None) -> None:
        local = self._local
        if local is None:
            return
        of_base: Mapping[str, Any] = {}
        if base is not None:
            of_base = {"base": base.result, "base_version": base.version, "changes": self._changes}
        VersionIndex(
            version=version,
            kind="full" if base is None else "delta",
            result=self.receipt,
            local_checkpoint_dir=str(local.directory),
            delta_encoding=local.encoding,
            checksum_format=local.checksum,
            **of_base,
        ).write(directory)
