"""Files of one version of the weights on disk: safetensors shards plus their digests."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from slime_core.errors import WeightSyncError

from slime_sglang.weights.digests import DIGESTS, NamedTensors, decode, encode

DIGESTS_FILE = "digests.safetensors"


def write_shard(directory: Path, number: int, tensors: NamedTensors) -> None:
    """Write one bucket as one file."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    save_file(contiguous, directory / f"bucket-{number:05d}.safetensors")


def write_digests(directory: Path, digests: Mapping[str, str]) -> None:
    """Write the digests of all shards as a file of their own."""
    save_file({DIGESTS: encode(digests)}, directory / DIGESTS_FILE)


def read_digests(directory: Path) -> dict[str, str]:
    """The digests of a version; empty for a directory that did not come from a publish."""
    path = directory / DIGESTS_FILE
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return decode(file.get_tensor(DIGESTS))
    except SafetensorError as error:
        raise WeightSyncError(f"{path} is damaged: {error}") from error
