import pytest
from slime_core.errors import SampleError
from slime_core.scores import (
    REWARD_OUTCOME,
    is_answer,
    is_broken,
    is_ungraded,
    never_generated,
    reward_entry,
    reward_value,
)
from slime_core.types import Status
from slime_testing import make_sample


def test_nothing_blanks_nan_and_dictionaries_are_no_answers():
    labels = ["4", 4, 0, 0.5, False, ["4"], None, "", " ", float("nan"), {"answer": "4"}]
    assert [is_answer(label) for label in labels] == [True] * 6 + [False] * 5


def test_failed_and_aborted_samples_are_broken():
    broken = [s for s in Status if is_broken(make_sample(status=s))]
    assert broken == [Status.ABORTED, Status.FAILED]


@pytest.mark.parametrize("status", [Status.FAILED, Status.ABORTED])
@pytest.mark.parametrize("reward", [None, {}, {"error": "no sandbox"}, {"score": None}])
def test_a_broken_sample_needs_no_reward(status, reward):
    sample = make_sample(reward=reward, status=status)
    assert reward_value(sample, "score") is None
    assert reward_entry(sample, "score") is None


def test_numbers_of_any_kind_are_read():
    assert reward_value(make_sample(reward={"score": True}), "score") == 1.0
    assert reward_value(make_sample(reward={"score": 2}), "score") == 2.0
    assert reward_entry(make_sample(reward={"score": False}), "score") == 0.0


def test_what_is_no_number_is_refused_by_name():
    with pytest.raises(SampleError, match="sample 4: `reward` is 'good', not a number"):
        reward_value(make_sample(index=4, reward={"a": "good"}), "a")
    with pytest.raises(SampleError, match="sample 4: `reward` is inf, not a finite number"):
        reward_entry(make_sample(index=4, reward={"a": float("inf")}), "a")


@pytest.mark.parametrize(
    ("reward", "shown"),
    [({"a": 1}, r"the keys \['a'\]"), (1.0, "the value 1.0"), (None, "the value None")],
)
def test_a_missing_entry_names_sample_and_key(reward, shown):
    sample = make_sample(index=7, reward=reward)
    named = rf"sample 7: `reward` has {shown}, but --gdpo-reward-keys asks for 'b'"
    with pytest.raises(SampleError, match=named):
        reward_entry(sample, "b")


def test_a_group_is_ungraded_or_never_generated_only_if_all_of_it_failed():
    lost = make_sample(status=Status.FAILED)
    ungraded = make_sample(status=Status.FAILED, metadata={REWARD_OUTCOME: "timeout"})
    aborted, fine = make_sample(status=Status.ABORTED), make_sample()
    cases = [
        ((lost, lost), (False, True)),
        ((lost, ungraded), (True, False)),
        ((ungraded, ungraded), (True, False)),
        ((lost, aborted), (False, False)),
        ((ungraded, fine), (False, False)),
        ((lost, fine), (False, False)),
        ((fine, fine), (False, False)),
    ]
    for samples, expected in cases:
        assert (is_ungraded(samples), never_generated(samples)) == expected
