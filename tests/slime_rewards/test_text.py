import pytest
from slime_rewards import dapo, deepscaler, f1


@pytest.mark.parametrize(
    ("response", "label", "score"),
    [
        ("The cat sat.", "a cat", 2 / 3),
        ("cat", "cat", 1.0),
        ("dog", "cat", 0.0),
        ("yes it is", "yes", 0.0),
        ("no", "yes it is", 0.0),
        ("", "", 0.0),
    ],
)
def test_f1_by_hand(response, label, score):
    assert f1.grade(response, label) == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "label", "right"),
    [
        ("Answer: 4", "4", True),
        ("Answer: 3\nanswer:  $x = 4$.", "4", True),
        (r"Answer: \boxed{1,000} dollars", "1000", True),
        (r"Answer: \dfrac12", r"\frac{1}{2}", True),
        ("Answer: 0.5", "1/2", True),
        ("Answer: 5", "4", False),
        ("4", "4", False),
        (r"Answer: \boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
        (r"Answer: \boxed{x = 5}", "5", True),
        ("Answer: the value is $5$.", "5", True),
        ("Answer: the value is $5$.", "6", False),
        (r"Answer: 4 $\text{cm}$", "4", True),
        (r"Answer: \sqrt3", r"\sqrt{3}", True),
        (r"Answer: 2\sqrt 3", r"2\sqrt{3}", True),
        ("Answer: 1e3", "1000", True),
        ("Answer: 1e999999999999", "4", False),
        ("Answer: 4", "-1E-999999999999", False),
        ("Answer: 1e9_9_9_9_9_9_9_9_9", "4", False),
        ("Answer: 1e400", "1" + "0" * 400, True),
        ("Answer: 4" + "x" * 300, "4", False),
    ],
)
def test_dapo_looks_behind_the_last_answer(response, label, right):
    result = dapo.grade(response, label)
    assert (result["score"], result["acc"]) == (1.0 if right else -1.0, right)


def test_deepscaler_wants_thoughts_and_a_box():
    assert deepscaler.final_answer(r"<think>\boxed{1}</think> \boxed{2}") == r"\boxed{2}"
    assert deepscaler.final_answer(r"hm ###Response \boxed{3}") == r"\boxed{3}"
    assert deepscaler.final_answer(r"\boxed{1}") is None
    assert deepscaler.final_answer("<think></think> 4") is None


@pytest.mark.parametrize("label", ["$", r"\boxed{}", "$$ units", "."])
def test_an_answer_of_nothing_is_not_right(label):
    with pytest.raises(ValueError, match="is empty"):
        dapo.grade("Answer: $", label)
