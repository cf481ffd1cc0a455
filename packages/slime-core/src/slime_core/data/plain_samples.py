"""Samples and groups as plain data, as dumps and checkpoints hold them, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.types import Sample, SampleGroup, Status


def plain_group(group: SampleGroup) -> dict[str, Any]:
    """``group`` by attribute, its samples as ``plain_sample`` has them."""
    return {
        "group_index": group.group_index,
        "samples": [plain_sample(sample) for sample in group.samples],
        "baseline": group.baseline,
    }


def group_from_plain(values: Mapping[str, Any]) -> SampleGroup:
    """The group that ``plain_group`` was given; a file from before baselines has none."""
    samples = tuple(sample_from_plain(sample) for sample in values["samples"])
    return SampleGroup(values["group_index"], samples, values.get("baseline"))


def plain_sample(sample: Sample) -> dict[str, Any]:
    """Attributes of ``sample`` by name, those that plugins attached included."""
    return {**vars(sample), "status": sample.status.value}


def sample_from_plain(values: Mapping[str, Any]) -> Sample:
    """The sample that ``plain_sample`` was given."""
    sample = Sample()
    for name, value in values.items():
        setattr(sample, name, Status(value) if name == "status" else value)
    return sample


def plain_lists(groups: Sequence[Sequence[Sample]]) -> list[list[dict[str, Any]]]:
    """Groups as plain data."""
    return [[plain_sample(sample) for sample in group] for group in groups]


def lists_from_plain(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Sample]]:
    """The groups that ``plain_lists`` was given."""
    return [[sample_from_plain(sample) for sample in group] for group in groups]
