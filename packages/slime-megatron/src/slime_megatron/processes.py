"""What the process of a rank must see before torch is imported."""

import os
from collections.abc import Mapping

from slime_core.config.cluster import ClusterConfig
from slime_core.processes.this_machine import visible_device


def rank_environment(
    cluster: ClusterConfig, rank: int, world_size: int, shown: Mapping[str, str] = os.environ
) -> Mapping[str, str]:
    """Its GPU of its machine, or its share of the cores, and what libraries read at import.

    ``shown``: an environment whose CUDA_VISIBLE_DEVICES are the machine's GPUs for this run.
    """
    if cluster.device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // world_size)
        env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    else:
        device = visible_device(rank % cluster.actor_num_gpus_per_node, shown)
        env = {
            "CUDA_VISIBLE_DEVICES": device,
            # Megatron overlaps its collectives with compute by the order of one queue.
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": "1",
            # As SGLang sets it for itself: with the default the first broadcast of a publish hangs.
            "NCCL_CUMEM_ENABLE": "0",
        }
    return {**env, **{name: str(value) for name, value in cluster.train_env_vars.items()}}


def no_gpu(who: str, built_for: str | None) -> str:
    """Why a process that is to compute on a GPU cannot; ``built_for``: torch's version of CUDA."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    torch = f"built for CUDA {built_for}" if built_for else "built without CUDA"
    return (
        f"--device cuda: torch ({torch}) finds no GPU in {who} (CUDA_VISIBLE_DEVICES {devices}). "
        "Look at `nvidia-smi` there: the driver may be broken, too old for this torch, or have "
        "fewer GPUs than --actor-num-gpus-per-node; to train without GPUs give --device cpu"
    )
