"""Rollouts that wait to be trained on, and where the prompts stood before the one under way."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slime_core.data.plain_data import plain_copy
from slime_core.data.plain_samples import group_from_plain, plain_group
from slime_core.errors import CheckpointError
from slime_core.interfaces import Metrics
from slime_core.types import SampleGroup

Position = Mapping[str, Any]
Made = tuple[Sequence[SampleGroup], Metrics]

STATE_FILE = "rollout.pt"
"""The generating side's part of a checkpoint."""


class FinishedRollouts:
    """What generation is ahead of training, so that a checkpoint between the two loses nothing.

    A rollout that is finished is kept until it is trained on. One that is under way is as if it had
    not begun: a checkpoint holds the position before it, and it is generated again from the same
    prompts. All methods may be called from any thread.
    """

    def __init__(self, makers: str = "") -> None:
        """``makers``: the flags of the user's functions that may set attributes of a sample."""
        self._lock = threading.Lock()
        self._makers = makers
        self._checked = False
        self._made: dict[int, Made] = {}
        self._before: Position | None = None

    def __len__(self) -> int:
        return len(self._made)

    def make(
        self,
        iteration: int,
        position: Callable[[], Position] | None,
        produce: Callable[[int], Made],
    ) -> Made:
        """The groups of ``iteration``: those that are kept already, or else new ones.

        ``position`` of None: no checkpoint is written while they are made.

        Raises:
            DataError: the first of them hold what a checkpoint cannot, and one may be written.
        """
        with self._lock:
            if iteration in self._made:
                return self._made[iteration]
            self._before = None if position is None else self._copy_of(position)
        made = produce(iteration)
        if position is not None and not self._checked:
            self._plain({iteration: made})  # an hour later it would cost that hour
            self._checked = True
        with self._lock:
            self._made[iteration] = made
            self._before = None
        return made

    def drop(self, *, through: int) -> None:
        """Forget the rollouts up to ``through``: they have been trained on."""
        with self._lock:
            self._made = {i: made for i, made in self._made.items() if i > through}

    def state_dict(self, iteration: int, position: Callable[[], Position]) -> dict[str, Any]:
        """What is left to do after ``iteration``, as plain data."""
        with self._lock:
            before = self._before
            kept = {i: made for i, made in self._made.items() if i > iteration}
            now = self._copy_of(position) if before is None else before
        return {"position": now, "finished": self._plain(kept)}

    def save(self, directory: Path, iteration: int, position: Callable[[], Position]) -> None:
        """Write ``state_dict`` into a checkpoint's directory.

        Raises:
            DataError: something in it is no plain data; nothing was written.
        """
        torch.save(self.state_dict(iteration, position), directory / STATE_FILE)

    def load(self, checkpoint: Path) -> Position:
        """Keep the rollouts that ``save`` wrote; the position to continue from."""
        path = checkpoint / STATE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{checkpoint} has no {STATE_FILE}: it was not written by a run of this kind; "
                "add --finetune to take its weights and start anew"
            )
        return self.load_state_dict(torch.load(path, weights_only=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> Position:
        """Keep the rollouts of ``state_dict``; the position to continue from."""
        with self._lock:
            self._made = {
                i: ([group_from_plain(row) for row in made["groups"]], made["metrics"])
                for i, made in state["finished"].items()
            }
        return state["position"]

    def _plain(self, made: Mapping[int, Made]) -> dict[int, dict[str, Any]]:
        finished = {
            i: {"groups": [plain_group(group) for group in groups], "metrics": dict(metrics)}
            for i, (groups, metrics) in made.items()
        }
        return plain_copy(finished, "finished rollouts: ", self._makers)

    def _copy_of(self, position: Callable[[], Position]) -> Position:
        """The position as it is now, whatever is taken from the prompts from now on."""
        return plain_copy(dict(position()), "position in the prompts: ", self._makers)
