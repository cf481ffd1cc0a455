"""Publish by files: a directory per version that appears complete or not at all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from slime_core.config.sync import UpdateMode
from slime_core.durable import sync_tree
from slime_core.errors import WeightSyncError
from torch import Tensor

from slime_sglang.weights.digests import digests_of, receipt
from slime_sglang.weights.disk_format import write_digests, write_shard
from slime_sglang.weights.session import EngineTarget, Session


class DiskReceiver:
    """``WeightReceiver`` over a directory that trainer and engines both see."""

    def __init__(
        self,
        targets: Sequence[EngineTarget],
        directory: Path,
        *,
        keep_files: bool = False,
        mode: UpdateMode = "abort",
    ) -> None:
        self._session = Session(targets, mode)
        self._directory = directory.absolute()
        self._keep_files = keep_files
        self._digests: dict[str, str] = {}
        self._num_shards = 0

    def begin(self, version: int) -> None:
        """Start writing; engines go on until everything is written."""
        self._session.open(version)
        self._digests, self._num_shards = {}, 0
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Write one bucket as one file."""
        if not tensors:
            return
        write_shard(self._partial, self._num_shards, tensors)
        self._digests |= digests_of(tensors)
        self._num_shards += 1

    def commit(self) -> None:
        """Complete the version, load and verify it in every engine, remove what it replaces."""
        if not self._digests:
            raise WeightSyncError("no weights were sent")
        write_digests(self._partial, self._digests)
        sync_tree(self._partial)
        final = version_path(self._directory, self._session.version)
        shutil.rmtree(final, ignore_errors=True)
        self._partial.rename(final)
        self._session.pause()
        messages = self._session.each(lambda client, _: client.update_from_disk(str(final)))
        self._session.check_receipts(messages, receipt(self._digests))
        self._session.finish()
        if not self._keep_files:
            for old in self._directory.glob("weight_v*"):
                if old != final:
                    shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Drop the connections."""
        self._session.close()

    @property
    def _partial(self) -> Path:
        return self._directory / f".weight_v{self._session.version:06d}.partial"


def version_path(directory: Path, version: int) -> Path:
    """Where a version's files are."""
    return directory / f"weight_v{version:06d}"
