"""The few verbs the loop and the backends need from each other.

Backends satisfy these structurally; nothing here is inherited from. The driver of a run imports
this, so torch is not imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, Protocol, runtime_checkable

from slime_core.prompt_ledger import PromptLedger
from slime_core.types import Sample, SampleGroup

if TYPE_CHECKING:
    from torch import Tensor

BatchHandle = NewType("BatchHandle", object)
"""A rollout's training data, by reference; the driver passes it on and never looks inside."""

Metrics = Mapping[str, float]


@runtime_checkable
class Reduce(Protocol):
    """Sum a small tensor over the ranks that share a statistic; carries gradient."""

    def sum(self, x: "Tensor") -> "Tensor":
        """Return the sum of ``x`` over those ranks, same shape."""
        ...


class Generate(Protocol):
    """Completes one sample; may be a whole agent."""

    async def __call__(self, sample: Sample) -> Sample | list[Sample]:
        """Return the finished sample, or the segments it split into."""
        ...


class Reward(Protocol):
    """Scores finished samples of one group; what cannot be graded becomes ``Status.FAILED``."""

    async def __call__(self, samples: Sequence[Sample]) -> None:
        """Set ``reward`` on every sample that has none; raises where too many cannot be graded."""
        ...


@runtime_checkable
class PromptSource(Protocol):
    """Where groups of pending samples come from, and where unfinished ones go back to."""

    def begin(self, iteration: int) -> None:
        """Groups are taken for this iteration from now on."""
        ...

    def take(self, num_groups: int) -> list[SampleGroup]:
        """The next groups; starts another epoch when the data is used up."""
        ...

    def give_back(self, groups: Sequence[SampleGroup]) -> None:
        """Return groups to be taken again first."""
        ...

    def add(self, groups: Sequence[SampleGroup]) -> None:
        """The same for groups of anybody: not taken from here, or already trained on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s position."""
        ...

    @property
    def ledger(self) -> PromptLedger:
        """What became of the prompts given out; whoever takes them reports it there."""
        ...

    def settle(self) -> None:
        """Check that every prompt given out is accounted for; raises ``DataError``."""
        ...

    def metrics(self) -> Metrics:
        """The books, and what was left out of the data."""
        ...


class Rollout(Protocol):
    """Turns prompts into training data under the current weights."""

    def begin(self, iteration: int) -> Callable[[], tuple[BatchHandle, Metrics]]:
        """Start to collect the groups of one iteration; the returned function waits for them."""
        ...

    def published(self, version: int) -> None:
        """Hear that the engines serve the weights ``version``."""
        ...

    def evaluate(self, version: int) -> Metrics:
        """Score the evaluation sets under the weights ``version``."""
        ...

    def save(self, directory: Path, iteration: int) -> None:
        """Write what is needed to go on after ``iteration`` into ``directory``."""
        ...


class Trainer(Protocol):
    """Owns the weights."""

    def train(self, iteration: int, batch: BatchHandle) -> Metrics:
        """Take the optimizer steps of one iteration."""
        ...

    def publish(self, version: int) -> Metrics:
        """Make the rollout engines serve the current weights as ``version``; verified."""
        ...

    def save(self, directory: Path, iteration: int) -> None:
        """Write weights, optimizer, scheduler and random state into ``directory``."""
        ...


class WeightReceiver(Protocol):
    """The engines' end of a publish, as the trainer sees it; lives in the trainer's process."""

    def begin(self, version: int) -> None:
        """Have the engines pause; they have before the first bucket is theirs."""
        ...

    def send(self, tensors: "Sequence[tuple[str, Tensor]]") -> None:
        """Hand over one bucket of named tensors in Hugging Face layout, with their digests.

        Raises:
            WeightSyncError: what an engine received is not what was sent.
        """
        ...

    def commit(self) -> Metrics:
        """Set the weight version and resume; what this carrier has to report besides time.

        Raises:
            WeightSyncError: an engine did not load what was sent, or does not serve it.
        """
        ...


class Residency(Protocol):
    """Who occupies the GPUs; a no-op when trainer and engines have their own."""

    def training(self, *, publishes: bool) -> AbstractContextManager[None]:
        """Engines give their memory to the trainer inside the block.

        They have it back after it, unless a publish follows.
        """
        ...

    def publishing(self) -> AbstractContextManager[None]:
        """Engines hold weights but no KV cache inside the block, everything after it."""
        ...

    def spent(self) -> Metrics:
        """What moving memory has cost since the last call."""
        ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a run sets in, for what has numbers of it already."""

    step: int
    """The first iteration that is to come."""
    goes_on: bool
    """Whether it goes on from a checkpoint of its own, so that the steps before are its own."""
    evaluates: bool = False
    """Whether the weights that it sets in with are evaluated first, as ``step``."""
    say: Callable[[str], None] = lambda _: None
    """Hears where numbers went that were there before."""


@runtime_checkable
class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record ``metrics`` at ``step``."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@runtime_checkable
class Rewinding(Tracker, Protocol):
    """A tracker that can take back what it has of steps that are made again."""

    def begin(self, at: Beginning) -> None:
        """Take back what is there of the steps to come; called at each start, before ``log``."""
        ...
