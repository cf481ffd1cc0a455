"""Processes and devices: how many trainers, how many engines, on what."""

from dataclasses import dataclass
from typing import Any, Literal

from slime_core.config.flags import flag, json_object


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Who runs where."""

    device: Literal["auto", "cpu", "cuda"] = flag(default="auto", ours=True)
    """What trainer and engines compute on; auto takes CUDA where an NVIDIA device is visible."""
    actor_num_nodes: int = flag(default=1, at_least=1)
    """Machines the trainer runs on."""
    actor_num_gpus_per_node: int = flag(default=8, at_least=1)
    """Trainer ranks per machine, one GPU each; on CPU processes, 1 unless given. Unless given, the
    GPUs that the engines leave."""
    rollout_num_gpus: int | None = flag(default=None, at_least=0)
    """GPUs of all engines together; with --colocate the trainer's GPUs, otherwise one engine."""
    rollout_num_gpus_per_engine: int = flag(default=1, at_least=1)
    """GPUs one engine spans (its tensor-parallel size)."""
    rollout_num_engines: int | None = flag(default=None, at_least=1, ours=True)
    """Engines to start; on CPU the way to ask for several, on GPUs --rollout-num-gpus divided by
    --rollout-num-gpus-per-engine."""
    num_gpus_per_node: int = flag(default=8, at_least=1)
    """At most so many GPUs of a machine are used."""
    colocate: bool = False
    """Trainer and engines share the same GPUs; on a machine with a single one they do so anyway."""
    offload: bool = False
    """Same as --offload-train --offload-rollout."""
    offload_train: bool | None = flag(default=None, switch=True)
    """Move the trainer's weights and optimizer state to host memory, and free its gradients, while
    engines generate; with --colocate on GPUs it is done unless --no-offload-train is given."""
    offload_rollout: bool | None = flag(default=None, switch=True)
    """Release the engines' memory while the trainer trains; with --colocate on GPUs it is done
    unless --no-offload-rollout is given."""
    offload_host_memory_gib: float | None = flag(default=None, at_least=0.0, ours=True)
    """Host memory that --offload-train may take on each machine, in GiB; unless given, what the
    machine has left when the run starts."""
    train_env_vars: dict[str, Any] = flag(factory=dict[str, Any], parse=json_object)
    """Environment variables of the trainer's processes, a JSON object."""
    distributed_backend: Literal["nccl", "gloo"] = "nccl"
    """Collectives between trainer ranks; gloo on CPU."""
    distributed_timeout_minutes: int = flag(default=10, at_least=1)
    """How long a collective may wait, in minutes."""
