"""Publishing weights from the trainer to the engines."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

UpdateMode = Literal["abort", "retract", "in_place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSyncConfig:
    """How new weights reach the engines."""

    update_weight_mode: Literal["full", "delta"] = "full"
    """Send all bytes, or those that changed (delta: --update-weight-transport disk, applied to the
    copy in --update-weight-local-checkpoint-dir)."""
    update_weight_transport: Literal["auto", "tensor", "nccl", "disk"] = "auto"
    """Carrier: shared memory (tensor; engines on the trainer's machine), a collective group (nccl,
    which is gloo on CPU), or a directory (disk). auto takes tensor on a CPU and with --colocate,
    where engines are on the trainer's machine, else nccl."""
    update_weight_disk_dir: str | None = None
    """Directory for --update-weight-transport disk, visible to trainer and engines."""
    update_weight_disk_keep_files: bool = False
    """Keep the versions written to disk."""
    update_weight_buffer_size: int = flag(default=512 * 1024**2, at_least=1)
    """Largest bucket sent at once, in bytes."""
    update_weights_interval: int = flag(default=1, at_least=1)
    """Iterations between two publishes."""
    weight_update_mode: UpdateMode = flag(default="abort", ours=True)
    """What a publish does to requests that run: abort sends their rest anew under the new weights,
    retract has the engine compute their cache anew, in_place keeps the cache of the old weights."""
    check_weight_update_equal: bool = False
    """Every publish is verified by digests of every tensor, whether this is given or not."""
    update_weight_delta_encoding: Literal["xor", "overwrite"] = "xor"
    """How changes are written: xor of all bytes, or places and values of changed elements."""
    update_weight_delta_checksum: Literal["xxh3-128", "blake3", "adler32"] = "xxh3-128"
    """Checksum of every changed tensor, checked after its change was applied."""
    custom_update_weight_post_write_path: str | None = None
    """Function (args, version_dir, engines) called when the files of a version are written, before
    any engine loads them: to bring them where the engines see them."""
    update_weight_local_checkpoint_dir: str | None = None
    """Directory on each engine's machine for a copy of the weights that published versions on disk
    are brought into and loaded from."""
    release_train: bool = flag(default=False, planned="the trainer stays up: leave it out")
    """End the trainer's processes while engines generate."""
