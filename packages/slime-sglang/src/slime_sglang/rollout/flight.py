"""Groups that are being written, from one rollout to the next."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.rollout import RolloutConfig
from slime_core.config.sync import WeightSyncConfig
from slime_core.data.plain_samples import group_from_plain, plain_group
from slime_core.interfaces import PromptSource
from slime_core.types import SampleGroup

from slime_sglang.rollout.groups import UNFINISHED
from slime_sglang.together import end

_KEY = "in_flight"

Task = asyncio.Task[SampleGroup]


class Flight:
    """Taken from the prompts, and not yet judged.

    Only a collection changes it, so between two of them it may be asked from any thread.
    """

    def __init__(self) -> None:
        self.tasks: dict[Task, SampleGroup] = {}
        """With what each began from."""

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def num_running(self) -> int:
        """Those that are not finished."""
        return sum(not task.done() for task in self.tasks)

    def start(self, work: Coroutine[Any, Any, SampleGroup], begun_from: SampleGroup) -> None:
        """Let ``work`` run in the present event loop."""
        self.tasks[asyncio.create_task(work)] = begun_from

    def land(self, task: Task) -> SampleGroup:
        """The group of a task that is done."""
        del self.tasks[task]
        return task.result()  # waits: is done

    async def cancel(self) -> None:
        """End all of them."""
        await end(self.tasks)

    def state_dict(self) -> dict[str, Any]:
        """What to go on with; empty where nothing is in flight.

        Groups that are finished are kept whole. Others begin again, also those that only wait for
        their reward: what is being written may change while it is copied.
        """
        found = [_finished(task) or begun_from for task, begun_from in [*self.tasks.items()]]
        groups = sorted(found, key=lambda group: group.group_index)
        return {_KEY: [plain_group(group) for group in groups]} if groups else {}


def _finished(task: Task) -> SampleGroup | None:
    """What a task has made of its group, if nobody adds to that any more."""
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    group = task.result()  # waits: is done
    is_whole = all(sample.status not in UNFINISHED for sample in group.samples)
    return group if is_whole else None


def begin_again(source: PromptSource, state: Mapping[str, Any]) -> None:
    """Give ``source``, as it was at the time, the groups of ``Flight.state_dict``.

    Those that are finished are taken again like the others, and have nothing left to be done.
    """
    found: Sequence[Mapping[str, Any]] = state.get(_KEY, ())
    if found:
        source.ledger.in_flight = 0
        source.give_back([group_from_plain(group) for group in found])


@dataclass(frozen=True, slots=True, kw_only=True)
class InTime:
    """Whether what begins now would be young enough in a later rollout."""

    publish_every: int
    """Iterations between two publishes."""
    oldest: int | None
    """By how much a token's version may be below the one that is trained; None for no bound."""
    version: Callable[[], int | None]
    """The weights that the engines have at least."""

    @classmethod
    def of(
        cls,
        rollout: RolloutConfig,
        sync: WeightSyncConfig,
        off_policy: OffPolicyConfig,
        version: Callable[[], int | None],
    ) -> "InTime | None":
        """As --max-staleness says; None without --fully-async."""
        if not rollout.fully_async:
            return None
        bounded = rollout.max_staleness is not None
        return cls(
            publish_every=sync.update_weights_interval,
            oldest=off_policy.max_token_staleness if bounded else None,
            version=version,
        )

    def __call__(self, iteration: int) -> bool:
        """If it is trained on in ``iteration``, with the weights published last before that."""
        version = self.version()
        if self.oldest is None or version is None:
            return True
        return iteration - iteration % self.publish_every - version <= self.oldest
