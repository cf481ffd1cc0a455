"""Where the ranks of a trainer find each other to form their process group."""

import uuid
from pathlib import Path


class Meeting:
    """A file in a directory that all ranks see; no earlier run has met there."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f".rendezvous-{uuid.uuid4().hex[:8]}"

    @property
    def address(self) -> str:
        """For ``torch.distributed``; whatever is added to it is another such file."""
        return f"file://{self._path}"

    def close(self) -> None:
        """Take the files away; not before the ranks have ended: NCCL meets there all the time."""
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()
