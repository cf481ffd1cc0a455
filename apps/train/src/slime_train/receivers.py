"""Which carrier brings the weights from the trainer to the engines."""

from collections.abc import Sequence
from pathlib import Path

from slime_sglang.weights.changing import ClosableReceiver
from slime_sglang.weights.collective import CollectiveReceiver
from slime_sglang.weights.disk import DiskReceiver
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver

from slime_train.run_config import RunConfig


def make_receiver(config: RunConfig, engines: Sequence[EngineTarget]) -> ClosableReceiver:
    """The engines' end of a publish, by ``--update-weight-transport``; for rank 0's process."""
    mode = config.sync.weight_update_mode
    match config.sync.update_weight_transport:
        case "disk":
            assert config.sync.update_weight_disk_dir is not None, "checked with the command line"
            directory = Path(config.sync.update_weight_disk_dir)
            keep = config.sync.update_weight_disk_keep_files
            return DiskReceiver(engines, directory, keep_files=keep, mode=mode)
        case "nccl":
            timeout_s = 60.0 * config.cluster.distributed_timeout_minutes
            backend = "gloo" if config.cluster.device == "cpu" else "nccl"
            return CollectiveReceiver(engines, backend=backend, timeout_s=timeout_s, mode=mode)
        case _:
            return TensorReceiver(engines, mode=mode)
