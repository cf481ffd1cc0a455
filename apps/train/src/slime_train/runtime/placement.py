"""Which machines of a Ray cluster the ranks of a trainer run on."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from slime_core.config.cluster import ClusterConfig
from slime_core.heartbeat import WorkerError

_RESERVE_S = 300.0
_SOME_GPU = 0.4
"""Of one: says that a machine must have any, and leaves room for a critic beside the actor."""


def machines(cluster: ClusterConfig) -> Sequence[Mapping[str, Any]]:
    """Ray's options for the ranks of each machine; with a single one Ray decides.

    Raises:
        WorkerError: the cluster has too few machines with room, after five minutes.
    """
    count, each = cluster.actor_num_nodes, cluster.actor_num_gpus_per_node
    if count == 1:
        return [{}]
    bundle = {"CPU": float(each)} | ({} if cluster.device == "cpu" else {"GPU": _SOME_GPU})
    group = placement_group([bundle] * count, strategy="STRICT_SPREAD")
    if not group.wait(timeout_seconds=_RESERVE_S):  # waits: at most five minutes
        remove_placement_group(group)
        raise WorkerError(
            f"--actor-num-nodes {count}: the Ray cluster has fewer machines with {each} free CPUs "
            "each (--actor-num-gpus-per-node); `ray status` shows what there is"
        )
    place = PlacementGroupSchedulingStrategy
    return [
        {"scheduling_strategy": place(group, placement_group_bundle_index=index)}
        for index in range(count)
    ]
