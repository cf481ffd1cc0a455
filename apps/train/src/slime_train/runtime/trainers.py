"""The trainer's ranks, one process each, behind the loop's ``Trainer`` verbs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.interfaces import BatchHandle, Metrics
from slime_core.residency import Holding
from slime_megatron.processes import rank_environment
from slime_sglang.weights.session import EngineTarget

from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import Pending, Remote, gather
from slime_train.runtime.placement import Place

if TYPE_CHECKING:
    from slime_megatron.iteration.objective import Role  # torch stays out of the driver

Handles = Sequence[Any]
"""Vectors of samples, by reference: they travel from rank to rank, not through the driver."""

_NOTHING: Mapping[str, Handles] = {}


class TrainerGroup:
    """All ranks of one model; every verb is collective and fails as soon as one rank does."""

    def __init__(
        self,
        config: RunConfig,
        *,
        logs: Path,
        on_wait: Callable[[], None],
        timeout_s: float,
        places: Sequence[Place],
        role: "Role" = "actor",
    ) -> None:
        self._layout = config.megatron.layout
        self._timeout_s = timeout_s
        self._on_wait = on_wait
        world_size = self._layout.world_size
        self._places = places  # as long as there are ranks
        self._spread = config.cluster.actor_num_nodes > 1
        where = [
            places[rank // config.cluster.actor_num_gpus_per_node] for rank in range(world_size)
        ]
        self._ranks = [
            Remote(
                f"{'trainer' if role == 'actor' else role} rank {rank}",
                functools.partial(_trainer_rank, config, rank, world_size, logs, role),
                env=rank_environment(config.cluster, rank, world_size, place.shown),
                place=place.options,
            )
            for rank, place in enumerate(where)
        ]

    def initialize(
        self, rendezvous: str, load: Path | None
    ) -> Callable[[], tuple[int, Mapping[str, float]]]:
        """Start building the model everywhere.

        The returned function waits; it gives the first iteration to train and how many seconds
        each part took. Ranks on several machines meet at an address of the first one.
        """
        if self._spread:
            rendezvous = self._ranks[0].call("meeting_place").result(self._timeout_s)
        calls = self._start("initialize", rendezvous=rendezvous, load=load)
        return lambda: self._gather(calls)[0]

    def connect(self, engines: Sequence[EngineTarget]) -> None:
        """Tell the ranks which engines to publish to."""
        self._collect("connect", engines)

    def train(
        self, iteration: int, batch: BatchHandle, given: Mapping[str, Handles] = _NOTHING
    ) -> Metrics:
        """Take the optimizer steps of one iteration; ``given``: what another trainer found."""
        calls = [
            remote.call("train", iteration, payload, given)
            for remote, payload in zip(self._ranks, self._payloads(batch), strict=True)
        ]
        return self._gather(calls)[0]

    def values(self, batch: BatchHandle) -> Handles:
        """A critic's values of every sample."""
        calls = [
            remote.call("values", payload)
            for remote, payload in zip(self._ranks, self._payloads(batch), strict=True)
        ]
        return self._gather(calls)

    def returns(self) -> Handles:
        """The returns of every sample, from the last ``train`` of an actor."""
        return self._collect("returns")

    def publish(self, version: int) -> Metrics:
        """Make the engines serve the current weights as ``version``; verified."""
        return self._collect("publish", version)[0]

    def hold(self, what: Holding) -> float:
        """Keep so much in device memory; bytes of host memory for the rest, of all ranks."""
        return sum(self._collect("hold", what))

    def save(self, directory: Path, iteration: int) -> None:
        """Write weights, optimizer, scheduler and random state into ``directory``."""
        self._collect("save", directory, iteration)

    def finish_save(self, wait: bool) -> bool:
        """Whether the save under way, if any, is complete on every rank."""
        return all(self._collect("finish_save", wait))

    def save_hf(self, directory: Path) -> None:
        """Write the weights as a Hugging Face checkpoint."""
        self._collect("save_hf", directory)

    def shutdown(self) -> None:
        """Leave the process group in order; the processes end with the cluster."""
        self._collect("shutdown")

    def _payloads(self, batch: BatchHandle) -> list[Any]:
        """What each rank is sent."""
        payloads: Sequence[Any] = batch  # pyright: ignore[reportAssignmentType]
        return [payloads[self._layout.dp_rank(rank)] for rank in range(len(self._ranks))]

    def _collect(self, method: str, *args: Any) -> list[Any]:
        return self._gather(self._start(method, *args))

    def _start(self, method: str, *args: Any, **kwargs: Any) -> list[Pending]:
        return [remote.call(method, *args, **kwargs) for remote in self._ranks]

    def _gather(self, calls: Sequence[Pending]) -> list[Any]:
        return gather(calls, self._timeout_s, self._on_wait)


def _trainer_rank(config: RunConfig, rank: int, world_size: int, logs: Path, role: "Role") -> Any:
    # Here, in the rank's own process, the first import of torch and Megatron happens.
    from slime_core.processes.events import starting
    from slime_core.processes.heartbeat import announce
    from slime_core.processes.logs import log_everything_to_file

    kind, name = ("trainer_rank", "trainer") if role == "actor" else ("critic_rank", "critic")
    log_everything_to_file(log := logs / f"{name}-{rank}.log")
    announce(logs.parent, kind, f"{name} rank {rank}", log)
    with nullcontext() if rank else starting(f"{name}: torch imported"):
        from slime_train.runtime.trainer_worker import TrainerWorker
    return TrainerWorker(config, rank, world_size, role)
