"""Which machines of a Ray cluster a run is on, and what is reserved for it there."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from slime_core.config.cluster import ClusterConfig
from slime_core.heartbeat import WorkerError
from slime_core.machine import granted_devices

from slime_train.runtime.cluster import Remote
from slime_train.runtime.env import ray_address

_RESERVE_S = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """A machine, as a process of the run comes there."""

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Ray's."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names the GPUs there that are the run's."""
    holds: Any = None
    """What is reserved is given back when nobody has this any more."""

    @property
    def shown(self) -> Mapping[str, str]:
        """The environment that the run's GPUs are counted within."""
        return {**os.environ, **self.env}


class _Reservation:
    def gpus(self) -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


def reserve(cluster: ClusterConfig, num_models: int) -> Sequence[Place]:
    """Room on each machine for the ranks of so many models; for engines, too, on a single one.

    A single machine is that of the caller. A Ray of our own has no other and counts nothing.

    Raises:
        WorkerError: the cluster has too little room, after five minutes.
    """
    count, gpus = cluster.actor_num_nodes, cluster.num_gpus_taken(trains=num_models > 0)
    if count == 1 and ray_address() is None:
        return [Place()]
    ranks = cluster.actor_num_gpus_per_node * num_models
    cpus = ranks + 1 if count == 1 else ranks
    room = f"{gpus} free GPUs and {cpus} free CPUs" if gpus else f"{cpus} free CPUs"
    if count > 1:
        bundle = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
        return _spread([bundle] * count, gpus, f"fewer machines with {room} each")
    node = ray.get_runtime_context().get_node_id()
    here = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False), "num_cpus": 0}
    held = Remote("reservation", _Reservation, place={**here, "num_cpus": cpus, "num_gpus": gpus})
    try:
        granted = held.call("gpus").result(_RESERVE_S)
    except (WorkerError, ActorUnschedulableError) as error:
        held.end()
        raise WorkerError(
            f"this machine, where the run is started, does not have {room} in the Ray cluster "
            f"(--actor-num-gpus-per-node {cluster.actor_num_gpus_per_node}, --rollout-num-gpus "
            f"{cluster.rollout_num_gpus}); `ray status` shows what there is and who has it"
        ) from error
    return [Place(here, granted_devices(granted, os.environ) if gpus else {}, held)]


def _spread(bundles: Sequence[Mapping[str, float]], gpus: int, lack: str) -> Sequence[Place]:
    group = placement_group(list(map(dict, bundles)), strategy="STRICT_SPREAD")
    if not group.wait(timeout_seconds=_RESERVE_S):  # waits: at most five minutes
        remove_placement_group(group)
        raise WorkerError(
            f"--actor-num-nodes {len(bundles)}: the Ray cluster has {lack} "
            "(--actor-num-gpus-per-node); `ray status` shows what there is and who has it"
        )
    places: list[Place] = []
    for index in range(len(bundles)):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        place = {"scheduling_strategy": strategy}
        mine = {**place, "num_cpus": 0, "num_gpus": gpus}
        held = Remote("reservation", _Reservation, place=mine)
        granted = held.call("gpus").result(_RESERVE_S)
        places.append(Place(place, granted_devices(granted, {}) if gpus else {}, held))
    return places
