"""``index.json`` of a version on disk that engines bring into a copy of their own."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from slime_core.errors import WeightSyncError

from slime_sglang.weights.difference import Checksum, Encoding

_FILE = "index.json"
_FORMAT = "slime-weights/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One tensor of a version that holds differences."""

    file: str
    checksum: str
    """Of the tensor that comes out."""
    itemsize: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionIndex:
    """What the files beside it are."""

    version: int
    kind: Literal["full", "delta"]
    result: str
    """Receipt over the digests of all tensors: which weights these are."""
    local_checkpoint_dir: str = ""
    """Where engines keep their copy."""
    base: str = ""
    """``result`` of the version that the differences are to."""
    base_version: int = -1
    delta_encoding: Encoding = "xor"
    compression_format: Literal["zstd"] = "zstd"
    checksum_format: Checksum = "xxh3-128"
    changes: dict[str, Change] = field(default_factory=dict[str, Change])
    """By name; a tensor that is not here did not change."""

    def write(self, directory: Path) -> None:
        """As ``index.json``."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        (directory / _FILE).write_text(text, encoding="utf-8")


def read_index(directory: Path) -> VersionIndex | None:
    """That of a directory; None where there is none."""
    path = directory / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WeightSyncError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
        return None
    values["changes"] = {name: Change(**row) for name, row in values["changes"].items()}
    return VersionIndex(**values)
