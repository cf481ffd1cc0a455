from dataclasses import dataclass
from typing import Literal

import pytest
from slime_core.config.algorithm import AdvantageConfig
from slime_core.config.cluster import ClusterConfig
from slime_core.config.evaluation import named_sets
from slime_core.config.flags import derived, flag, flags_of


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of every kind of field."""

    top_p: float = flag(default=1.0, above=0, at_most=1)
    """Probability mass."""
    mode: Literal["a", "b"] = "a"
    """Two
    lines."""
    stop: tuple[int, ...] | None = None
    """Ids."""
    quiet: bool = flag("--loud", default=True, negated="Do not be quiet.")
    """Say nothing."""
    tri: bool | None = flag(default=None, switch=True)
    """Maybe."""
    later: int = derived(default=3)
    """Without a flag."""


def by_dest():
    return {f.dest: f for f in flags_of(Section, helps=True)}


def test_a_field_is_a_flag_in_kebab_case_with_its_docstring_as_help():
    top_p = by_dest()["top_p"]
    assert (top_p.names, top_p.help, top_p.default) == (("--top-p",), "Probability mass.", 1.0)
    assert by_dest()["mode"].help == "Two lines."


def test_types_come_from_annotations():
    flags = by_dest()
    assert flags["mode"].choices == ("a", "b")
    assert (flags["stop"].arity, flags["stop"].convert) == ("some", int)
    assert (flags["tri"].arity, flags["tri"].negatives) == ("none", ("--no-tri",))


def test_negated_flags_store_false_in_a_positive_field():
    quiet = by_dest()["quiet"]
    assert (quiet.names, quiet.const) == (("--loud",), False)
    assert quiet.help == "Do not be quiet."  # of the flag, not of the field


def test_derived_fields_have_no_flag():
    assert "later" not in by_dest()


def test_upstreams_negated_spellings():
    spellings = {f.dest: f.names for f in flags_of(AdvantageConfig)}
    assert spellings["normalize_rewards"] == ("--disable-rewards-normalization",)
    assert spellings["normalize_grpo_std"] == ("--disable-grpo-std-normalization",)


def test_every_field_of_a_section_has_a_help_text():
    assert [f.dest for f in flags_of(ClusterConfig, helps=True) if not f.help] == []


def test_evaluation_sets_are_pairs_and_one_word_is_aime():
    assert named_sets((("gsm8k", "g.jsonl", "math", "m.jsonl"), ("a.jsonl",))) == (
        ("gsm8k", "g.jsonl"),
        ("math", "m.jsonl"),
        ("aime", "a.jsonl"),
    )


@pytest.mark.parametrize("words", [(("a", "b", "c"),), (("a", "x"), ("a", "y"))])
def test_odd_or_repeated_evaluation_sets_are_refused(words):
    with pytest.raises(ValueError, match=r"pairs|twice"):
        named_sets(words)
