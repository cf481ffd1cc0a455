"""Which carrier brings the weights from the trainer to the engines."""

from collections.abc import Sequence

from slime_sglang.weights.changing import ClosableReceiver
from slime_sglang.weights.collective import CollectiveReceiver, host_towards
from slime_sglang.weights.disk import DiskReceiver, DiskSpec
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver

from slime_train.run_config import RunConfig


def make_receiver(config: RunConfig, engines: Sequence[EngineTarget]) -> ClosableReceiver:
    """The engines' end of a publish, by ``--update-weight-transport``; for rank 0's process."""
    mode = config.sync.weight_update_mode
    match config.sync.update_weight_transport:
        case "disk":
            return DiskReceiver(engines, DiskSpec.of(config.sync, config.flat), mode=mode)
        case "nccl":
            timeout_s = 60.0 * config.cluster.distributed_timeout_minutes
            backend = "gloo" if config.cluster.device == "cpu" else "nccl"
            return CollectiveReceiver(
                engines,
                backend=backend,
                host=host_towards(engine.url for engine in engines),
                timeout_s=timeout_s,
                mode=mode,
            )
        case _:
            return TensorReceiver(engines, mode=mode)
