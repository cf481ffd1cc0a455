"""Which ranks and engines of a run are on which machine, and on which of its GPUs: sums alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.config.cluster import ClusterConfig
from slime_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run has on one machine; GPUs count from 0 within those that it takes there."""

    num_ranks: int = 0
    """Of each model that is trained; on GPUs each has one, the first of the machine."""
    engines: tuple[tuple[int, ...], ...] = ()
    """The GPUs of each engine that is started there; none on a CPU."""
    num_gpus: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What is reserved on a machine."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        """As in a message."""
        return f"{self.gpus} free GPUs and " * bool(self.gpus) + f"{self.cpus} free CPUs"


def rooms(where: Sequence[Machine], num_models: int) -> tuple[Room, ...]:
    """Room for the ranks of so many models, one CPU each, and for whoever starts engines there.

    Engines of a single machine are started by the rollout worker, which is on the first.
    """
    several = len(where) > 1
    return tuple(
        Room(
            machine.num_ranks * num_models + bool(machine.engines and several) + (number == 0),
            machine.num_gpus,
        )
        for number, machine in enumerate(where)
    )


def machines(
    cluster: ClusterConfig, *, trains: bool = True, generates: bool = True
) -> tuple[Machine, ...]:
    """The machines of a run, those of the trainer first; engines are numbered in their order.

    An engine is within one machine. With --colocate engines are on the trainer's GPUs; otherwise
    on those that the trainer leaves of its machines, and on as many more machines as are needed.
    On a CPU the trainer's machines have equal shares of them.

    Args:
        cluster: as resolved.
        trains: whether the run has a trainer.
        generates: whether it starts engines.

    Raises:
        ConfigError: an engine, or all of them, do not fit.
    """
    if cluster.device == "cpu":
        found = _on_cpus(cluster, trains, cluster.rollout_num_engines or 0 if generates else 0)
    else:
        found = _on_gpus(cluster, trains, generates)
    return tuple(each for each in found if each.num_ranks or each.engines) or (Machine(),)


def _on_gpus(cluster: ClusterConfig, trains: bool, generates: bool) -> list[Machine]:
    each, left = cluster.rollout_num_gpus_per_engine, 0
    if generates:
        left = (cluster.rollout_num_gpus or 0) // each
    nodes = cluster.actor_num_nodes if trains or cluster.colocate else 0
    found: list[Machine] = []
    while left or len(found) < nodes:
        ranks = cluster.actor_num_gpus_per_node if trains and len(found) < nodes else 0
        first = 0 if cluster.colocate else ranks
        room = (_size(cluster) - first) // each
        if len(found) >= nodes and left and (cluster.colocate or room < 1):
            raise _too_many(cluster, found)
        here = max(0, min(left, room))
        last = first + here * each
        gpus = tuple(tuple(range(at, at + each)) for at in range(first, last, each))
        found.append(Machine(ranks, gpus, max(ranks, last)))
        left -= here
    return found


def _size(cluster: ClusterConfig) -> int:
    """GPUs of a machine that may be used, for engines."""
    if cluster.colocate and cluster.actor_num_nodes > 1:
        return cluster.actor_num_gpus_per_node
    return cluster.num_gpus_per_node


def _too_many(cluster: ClusterConfig, found: Sequence[Machine]) -> ConfigError:
    each, size = cluster.rollout_num_gpus_per_engine, _size(cluster)
    flag = "--num-gpus-per-node"
    if cluster.colocate:
        flag = "with --colocate the trainer's --actor-num-gpus-per-node"
    if each > size:
        return ConfigError(
            f"--rollout-num-gpus-per-engine {each}: an engine runs within one machine, of which "
            f"at most {size} GPUs are used ({flag} {size}): give smaller engines, or start such "
            "ones yourself and give --rollout-external-engine-addrs"
        )
    room = each * sum(len(machine.engines) for machine in found)
    return ConfigError(
        f"--rollout-num-gpus {cluster.rollout_num_gpus}: {len(found)} machines with {size} GPUs "
        f"each ({flag} {size}) have room for {room}, as an engine of "
        f"--rollout-num-gpus-per-engine {each} runs within one machine: give at most {room}, or a "
        f"--rollout-num-gpus-per-engine that {size} is a multiple of"
    )


def _on_cpus(cluster: ClusterConfig, trains: bool, num_engines: int) -> list[Machine]:
    count = cluster.actor_num_nodes
    ranks = cluster.actor_num_gpus_per_node if trains else 0
    ends = [-(-num_engines * (index + 1) // count) for index in range(count)]
    shares = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return [Machine(ranks, ((),) * share) for share in shares]
