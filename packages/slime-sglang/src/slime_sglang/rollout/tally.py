"""What became of the groups of one collection, and the metrics that say so."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from slime_core.data.filters import DynamicFilterOutput
from slime_core.scores import is_ungraded, never_generated
from slime_core.types import Sample, SampleGroup

from slime_sglang.answers.transcript import PREFIX_CACHE

_UNGRADED = "ungraded"

Verdict = Callable[[Sequence[Sample]], DynamicFilterOutput]


class Tally:
    """Sorts groups as they come back, until there are enough to train on."""

    def __init__(self, num_groups: int, keep: Verdict | None) -> None:
        """``num_groups`` are wanted; without ``keep`` whatever could be graded is accepted."""
        self._num_groups = num_groups
        self._keep = keep or _keep_all
        self._accepted: list[SampleGroup] = []
        self._finished: list[SampleGroup] = []
        self._spare: list[tuple[SampleGroup, str]] = []
        """Dropped groups that may fill a short batch, and why they were dropped."""
        self._drops: Counter[str] = Counter()
        self._num_surplus = 0
        self.was_anything_generated = False
        """Whether any sample did not fail before there was something to grade."""
        self.unfinished: list[SampleGroup] = []

    @property
    def accepted(self) -> list[SampleGroup]:
        """Those to train on, by group index."""
        return sorted(self._accepted, key=_index)

    @property
    def finished(self) -> list[SampleGroup]:
        """Those and all that were dropped, by group index."""
        return sorted(self._finished, key=_index)

    @property
    def num_accepted(self) -> int:
        """How many there are to train on."""
        return len(self._accepted)

    @property
    def num_finished(self) -> int:
        """How many came back whole, those that were dropped too."""
        return len(self._finished)

    @property
    def num_spare(self) -> int:
        """How many more there are if ``accept_spare`` is called."""
        return len(self._spare)

    @property
    def is_full(self) -> bool:
        """Whether there are as many as are wanted."""
        return len(self._accepted) >= self._num_groups

    @property
    def filtered(self) -> Counter[str]:
        """How many finished groups were not wanted, by reason."""
        return self._dropped() + Counter(surplus=self._num_surplus)

    def add(self, group: SampleGroup) -> None:
        """A finished group: accepted, dropped for a reason, or one too many."""
        self._finished.append(group)
        self.was_anything_generated |= not never_generated(group.samples)
        if self.is_full:
            self._num_surplus += 1
            return
        if is_ungraded(group.samples):
            self._drops[_UNGRADED] += 1
            return
        verdict = self._keep(group.samples)
        reason = verdict.reason or "filtered"
        if verdict.keep:
            self._accepted.append(group)
        elif verdict.keep_when_insufficient:
            self._spare.append((group, reason))
        else:
            self._drops[reason] += 1

    def accept_spare(self) -> None:
        """Take dropped groups, rather than another round of generation for a short batch."""
        num_missing = self._num_groups - len(self._accepted)
        self._accepted += [group for group, _ in self._spare[:num_missing]]
        del self._spare[:num_missing]

    def metrics(self, *, begun_again: Sequence[SampleGroup]) -> dict[str, float]:
        """``begun_again``: unfinished groups that lose what was written of them."""
        found = {
            f"rollout/dynamic_filter/drop_{reason}": float(n)
            for reason, n in self._dropped().items()
        }
        found["rollout/num_unfinished_groups"] = float(len(self.unfinished))
        found["rollout/num_surplus_groups"] = float(self._num_surplus)
        dropped = _num_tokens(self._finished) - _num_tokens(self._accepted)
        found["rollout/num_wasted_tokens"] = float(dropped + _num_tokens(begun_again))
        greedy = [group.baseline for group in self.accepted if group.baseline is not None]
        if greedy:
            found["rollout/greedy_reward"] = sum(greedy) / len(greedy)
        samples = [sample for group in self.accepted for sample in group.samples]
        return found | prefix_cache_metrics(samples)

    def _dropped(self) -> Counter[str]:
        return self._drops + Counter(reason for _, reason in self._spare)


def _keep_all(samples: Sequence[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=True)


def _index(group: SampleGroup) -> int:
    return group.group_index


def _num_tokens(groups: Sequence[SampleGroup]) -> int:
    return sum(sample.effective_response_length for group in groups for sample in group.samples)


def prefix_cache_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """How much of the prompts the engines already had."""
    counts: list[Any] = [s.metadata[PREFIX_CACHE] for s in samples if PREFIX_CACHE in s.metadata]
    total = sum(count["prompt_tokens"] for count in counts)
    if not total:
        return {}
    cached = sum(count["cached_tokens"] for count in counts)
    return {
        "rollout/prefix_cache_hit_rate": cached / total,
        "rollout/avg_cached_tokens_per_sample": cached / len(counts),
    }
