"""The nouns of a rollout: ``Sample`` is mutable while generated, ``SampleGroup`` is what comes out.

Lengths: P prompt tokens, R response tokens, P + R = len(tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from slime_core.errors import SampleError

_RESPONSE_ALIGNED = ("loss_mask", "rollout_log_probs", "teacher_log_probs", "token_versions")


@dataclass
class Sample:
    """One prompt and, once generated, one response.

    Created by a data source, completed by a generate function, scored by a reward, frozen by
    ``collate``. Crosses processes by pickle. Without slots, because plugins written for upstream
    attach attributes of their own.

    Example: a prompt of 4 tokens answered by 2, the second of them written by a tool::

        tokens            [12, 7, 9, 3, 41, 5]      P + R = 6
        response_length   2
        loss_mask         [1, 0]                    the tool's token is not trained on
        rollout_log_probs [-0.31, 0.0]
    """

    class Status(StrEnum):
        """Where a sample stands in its life."""

        PENDING = "pending"
        COMPLETED = "completed"
        TRUNCATED = "truncated"
        ABORTED = "aborted"
        FAILED = "failed"

    group_index: int | None = None
    """Which prompt of the run this answers; siblings share it and share a baseline."""
    index: int | None = None
    """Position in the run, unique per sample."""
    rollout_id: int | None = None
    """Which execution produced it; segments cut from one execution share it."""
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list[int])
    """Prompt then response, P + R ids."""
    response: str = ""
    response_length: int = 0
    """R."""
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    """R flags; None trains on every response token."""
    weight_versions: list[str] = field(default_factory=list[str])
    """The weights that wrote each segment, in order."""
    token_versions: list[int] | None = None
    """R weight versions: which weights wrote each token; -1 where none did."""
    rollout_log_probs: list[float] | None = None
    """R log-probabilities under the policy that sampled them; 0.0 where not sampled."""
    teacher_log_probs: list[float] | None = None
    remove_sample: bool = False
    """Keep it for statistics, train on none of its tokens."""
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    """Router affinity: requests of one session meet the same engine."""
    non_generation_time: float = 0.0
    """Seconds spent in tools."""
    multimodal_inputs: dict[str, Any] | None = None
    apply_chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def prompt_length(self) -> int:
        """P."""
        return len(self.tokens) - self.response_length

    @property
    def response_mask(self) -> list[int]:
        """R flags: which response tokens are trained on."""
        if self.remove_sample:
            return [0] * self.response_length
        return [1] * self.response_length if self.loss_mask is None else self.loss_mask

    @property
    def effective_response_length(self) -> int:
        """Response tokens that are trained on."""
        return sum(self.response_mask)

    def validate(self) -> None:
        """Make lists of what users' code set as arrays or tensors, and check their lengths.

        Raises:
            SampleError: naming the first field that is no list, or whose length is not R.
        """
        for name in ("tokens", *_RESPONSE_ALIGNED):
            self._make_list(name)
        if self.response_length > len(self.tokens):
            raise SampleError(
                f"sample {self.index}: `response_length` is {self.response_length} "
                f"but there are only {len(self.tokens)} `tokens`"
            )
        for name in _RESPONSE_ALIGNED:
            values: Sequence[float] | None = getattr(self, name)
            if values is not None and len(values) != self.response_length:
                raise SampleError(
                    f"sample {self.index}: `{name}` has {len(values)} entries "
                    f"but `response_length` is {self.response_length}"
                )

    def _make_list(self, name: str) -> None:
        given: Any = getattr(self, name)
        if isinstance(given, list) or (given is None and name != "tokens"):
            return
        listed = getattr(given, "tolist", None)
        plain: Any = given if listed is None else listed()
        if not isinstance(plain, list | tuple):
            raise SampleError(
                f"sample {self.index}: `{name}` is {given!r:.80}, not a list of numbers"
            )
        setattr(self, name, list(cast("Sequence[Any]", plain)))


Status = Sample.Status


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """The samples that answer one prompt and share a baseline; of any number."""

    group_index: int
    samples: tuple[Sample, ...]
    baseline: float | None = None
    """Reward of the greedy answer to the same prompt, where an estimator wants it (ReMax)."""


def samples_of(groups: Sequence[SampleGroup]) -> list[Sample]:
    """All samples, in order."""
    return [sample for group in groups for sample in group.samples]
