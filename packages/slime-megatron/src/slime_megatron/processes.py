"""What the process of a rank must see before torch is imported."""

import os
from collections.abc import Mapping

from slime_core.config.cluster import ClusterConfig


def rank_environment(cluster: ClusterConfig, rank: int, world_size: int) -> Mapping[str, str]:
    """Its GPU of this machine, or its share of the cores, and what libraries read at import."""
    if cluster.device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // world_size)
        env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    else:
        env = {
            "CUDA_VISIBLE_DEVICES": visible_device(rank % cluster.actor_num_gpus_per_node),
            # Megatron overlaps its collectives with compute by the order of one queue.
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": "1",
            # As SGLang sets it for itself: with the default the first broadcast of a publish hangs.
            "NCCL_CUMEM_ENABLE": "0",
        }
    return {**env, **{name: str(value) for name, value in cluster.train_env_vars.items()}}


def visible_device(index: int, environment: Mapping[str, str] = os.environ) -> str:
    """The name of a GPU that is counted within the CUDA_VISIBLE_DEVICES of the whole run."""
    given = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return given[index] if index < len(given) else str(index)
