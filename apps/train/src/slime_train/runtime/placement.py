"""Which machines of a Ray cluster a run is on, and what is reserved for it there."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from slime_core.config.cluster import ClusterConfig
from slime_core.config.machines import Room
from slime_core.processes.heartbeat import WorkerError
from slime_core.processes.this_machine import granted_devices

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


def reserve(cluster: ClusterConfig, rooms: Sequence[Room]) -> Sequence[Place]:
    """So much room on as many machines.

    A single one is that of the caller; a Ray of our own has no other and counts nothing.

    Raises:
        WorkerError: the cluster has too little room, after five minutes.
    """
    if len(rooms) == 1 and ray_address() is None:
        return [Place()]
    wanted = (
        f"{'; '.join(map(str, rooms))} (--actor-num-nodes {cluster.actor_num_nodes}, "
        f"--actor-num-gpus-per-node {cluster.actor_num_gpus_per_node}, --rollout-num-gpus "
        f"{cluster.rollout_num_gpus}); `ray status` shows what there is and who has it"
    )
    if len(rooms) > 1:
        return _spread(rooms, wanted)
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    here = {"scheduling_strategy": strategy, "num_cpus": 0}
    try:
        return [_hold(here, rooms[0], os.environ)]
    except (WorkerError, ActorUnschedulableError) as error:
        raise WorkerError(
            "in the Ray cluster this machine, where the run is started, does not have " + wanted
        ) from error


def _spread(rooms: Sequence[Room], wanted: str) -> Sequence[Place]:
    gpus = [{"GPU": float(room.gpus)} if room.gpus else {} for room in rooms]
    bundles = [{"CPU": float(room.cpus), **more} for room, more in zip(rooms, gpus, strict=True)]
    group = placement_group(bundles, strategy="STRICT_SPREAD")
    if not group.wait(timeout_seconds=_RESERVE_S):  # waits: at most five minutes
        remove_placement_group(group)
        raise WorkerError(f"the Ray cluster does not have {len(rooms)} machines with {wanted}")
    at = [PlacementGroupSchedulingStrategy(group, index) for index in range(len(rooms))]
    return [
        _hold({"scheduling_strategy": strategy}, replace(room, cpus=0), {})
        for strategy, room in zip(at, rooms, strict=True)
    ]


def _hold(place: Mapping[str, Any], room: Room, shown: Mapping[str, str]) -> Place:
    options = {**place, "num_cpus": room.cpus, "num_gpus": room.gpus}
    held = Remote("reservation", _Reservation, place=options)
    try:
        granted = held.call("gpus").result(_RESERVE_S)
    except (WorkerError, ActorUnschedulableError):
        held.end()
        raise
    return Place(place, granted_devices(granted, shown) if room.gpus else {}, held)
