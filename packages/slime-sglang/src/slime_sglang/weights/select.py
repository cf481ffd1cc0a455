"""Which carrier brings the weights from the trainer to the engines, and which rank sends them."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.config.cluster import ClusterConfig
from slime_core.config.sync import WeightSyncConfig

from slime_sglang.weights.changing import ClosableReceiver
from slime_sglang.weights.collective import CollectiveReceiver, host_towards
from slime_sglang.weights.disk import DiskReceiver, DiskSpec
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver


def senders(
    sync: WeightSyncConfig, cluster: ClusterConfig, engines: Sequence[EngineTarget]
) -> Mapping[int, tuple[EngineTarget, ...]]:
    """The engines by the trainer's rank that hands them the weights.

    Memory stays within a machine: there it is the first rank of each. Otherwise it is rank 0.
    """
    found: dict[int, tuple[EngineTarget, ...]] = {}
    by_memory = sync.update_weight_transport == "tensor"
    for engine in engines:
        rank = engine.machine * cluster.actor_num_gpus_per_node if by_memory else 0
        found[rank] = (*found.get(rank, ()), engine)
    return found


def make_receiver(
    sync: WeightSyncConfig,
    cluster: ClusterConfig,
    flat: Mapping[str, Any],
    engines: Sequence[EngineTarget],
) -> ClosableReceiver:
    """The engines' end of a publish, by ``--update-weight-transport``; for a sender's process."""
    mode = sync.weight_update_mode
    match sync.update_weight_transport:
        case "disk":
            return DiskReceiver(engines, DiskSpec.of(sync, flat), mode=mode)
        case "nccl":
            timeout_s = 60.0 * cluster.distributed_timeout_minutes
            backend = "gloo" if cluster.device == "cpu" else "nccl"
            return CollectiveReceiver(
                engines,
                backend=backend,
                host=host_towards(engine.url for engine in engines),
                timeout_s=timeout_s,
                mode=mode,
            )
        case _:
            return TensorReceiver(engines, mode=mode)
