"""Publish by files: a directory per version that appears complete or not at all."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.config.sync import UpdateMode, WeightSyncConfig
from slime_core.errors import WeightSyncError
from slime_core.files.durable import sync_tree
from slime_core.hooks import adapters as hooks
from slime_core.interfaces import Metrics
from torch import Tensor

from slime_sglang.weights.local_copy import NO_BASE
from slime_sglang.weights.session import EngineTarget, PublishSession
from slime_sglang.weights.version_files import LocalCopySpec, VersionFiles

_PARTIAL = ".weight_v{}.partial"

PostWrite = Callable[[Path, Sequence[EngineTarget]], None]
"""Called with the directory of a version that is complete, before any engine hears of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """Where versions are written, and what happens to them."""

    directory: Path
    """Trainer and engines both see it."""
    keep_files: bool = False
    local: LocalCopySpec | None = None
    """Engines load from a copy of their own."""
    post_write: PostWrite | None = None

    @classmethod
    def of(cls, config: WeightSyncConfig, flat: Mapping[str, Any]) -> "DiskSpec":
        """What the flags say; ``flat`` is what user functions see as ``args``."""
        assert config.update_weight_disk_dir is not None, "checked with the command line"
        hook = config.custom_update_weight_post_write_path
        return cls(
            directory=Path(config.update_weight_disk_dir),
            keep_files=config.update_weight_disk_keep_files,
            local=LocalCopySpec.of(config),
            post_write=None if hook is None else hooks.weight_post_write(hook, flat),
        )


class DiskReceiver:
    """``WeightReceiver`` over a directory that trainer and engines both see."""

    def __init__(
        self, targets: Sequence[EngineTarget], spec: DiskSpec, *, mode: UpdateMode = "abort"
    ) -> None:
        self._session = PublishSession(targets, mode)
        self._spec = spec
        self._directory = spec.directory.absolute()
        self._files = VersionFiles(spec.local)

    def begin(self, version: int) -> None:
        """Start writing; engines go on until everything is written."""
        self._session.open(version)
        self._files.begin()
        for left in self._directory.glob(_PARTIAL.format("*")):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._fresh(self._partial)

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Write one bucket as one file."""
        if tensors:
            self._files.add(self._partial, tensors)

    def commit(self) -> Metrics:
        """Complete the version, load and verify it in every engine, remove what it replaces."""
        if self._files.is_empty:
            raise WeightSyncError("no weights were sent")
        version = self._session.version
        self._files.finish(self._partial, version)
        final = self._complete(version_path(self._directory, version))
        metrics = self._files.metrics(final)
        self._session.pause()
        self._load(final)
        self._session.finish()
        self._files.arrived(version)
        if not self._spec.keep_files:
            for old in self._directory.glob("weight_v*"):
                if old != final:
                    shutil.rmtree(old, ignore_errors=True)
        return metrics

    def close(self) -> None:
        """Drop the connections."""
        self._session.close()

    def _load(self, directory: Path) -> None:
        """In every engine; whole weights where one lacks what the differences are to."""
        try:
            messages = self._session.each(lambda client, _: client.update_from_disk(str(directory)))
        except WeightSyncError as error:
            if NO_BASE not in str(error):
                raise
            self._fresh(self._partial)
            self._files.write_whole(self._partial, self._session.version)
            whole = self._complete(directory.with_name(f"{directory.name}-whole"))
            messages = self._session.each(lambda client, _: client.update_from_disk(str(whole)))
        self._session.check_receipts(messages, self._files.receipt)

    def _complete(self, final: Path) -> Path:
        """The partial version under its name, on disk, and known to whom it concerns."""
        sync_tree(self._partial)
        shutil.rmtree(final, ignore_errors=True)
        self._partial.rename(final)
        if self._spec.post_write is not None:
            self._spec.post_write(final, self._session.targets)
        return final

    def _fresh(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    @property
    def _partial(self) -> Path:
        return self._directory / _PARTIAL.format(f"{self._session.version:06d}")


def version_path(directory: Path, version: int) -> Path:
    """Where a version's files are."""
    return directory / f"weight_v{version:06d}"
