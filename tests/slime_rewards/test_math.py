import pytest
from slime_rewards.boxed import last_boxed
from slime_rewards.math import settle, verify


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed 7$ done", "7"),
        (r"\boxed{3} and \boxed{unclosed", "3"),
        (r"\fbox{x}", "x"),
        (r"\boxed {5}", "5"),
        (r"\boxed  {\frac{1}{2}} or so {6}", r"\frac{1}{2}"),
        ("\\boxed\n{5}", "5"),
        ("none", None),
        (r"\boxed\boxed 7", "7"),
        (r"\boxed{1} \boxed\fbox", "1"),
        (r"\boxed,{1} \fbox", "1"),
    ],
)
def test_the_last_complete_box_counts(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("response", "label", "verdict"),
    [
        ("4", "4", 1.0),
        (" 4.\n", "4", 1.0),
        ("4", "5", 0.0),
        ("14", "4", 0.0),
        ("4.0", "4", 1.0),
        ("1,000", "1000", 1.0),
        ("-3", "3", 0.0),
        (r"it is \boxed{12}", "12", 1.0),
        (r"12 but \boxed{13}", "12", 0.0),
        (r"\boxed{\frac12}", "1/2", 1.0),
        (r"\boxed{\dfrac{1}{2}}", "0.5", 1.0),
        (r"\boxed{\frac1{12}}", "1/12", 1.0),
        (r"\boxed{\frac{11}2}", "5.5", 1.0),
        (r"\boxed{\frac123}", "4", None),
        (r"\boxed{\frac1 12}", "5.5", None),
        (r"\boxed{x = 4}", "x = 4", 1.0),
        ("4", "x = 4", 1.0),
        (r"\boxed{\text{B}}", "B", 1.0),
        (r"\boxed{42}", r"thus \boxed{42}", 1.0),
        ("", "4", 0.0),
        ("5+7", "12", None),
        ("the answer is 12", "12", None),
        (r"\boxed{x^2}", "x**2", None),
        ("1/0", "3", None),
        ("9" * 5000, "3", None),
    ],
)
def test_plain_answers_need_no_algebra(response, label, verdict):
    assert settle(response, label) == verdict


@pytest.mark.parametrize(
    ("response", "label", "verdict"),
    [
        ("the answer is 12.", "12", 1.0),
        ("the answer is 13", "12", 0.0),
        ("5+7", "12", 0.0),
        (r"\boxed{5+7}", "12", 0.0),
        (r"\boxed{2^2}", "4", 0.0),
        (r"so \boxed{x = 4}", "4", 1.0),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1.0),
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1.0),
        ("I do not know", "12", 0.0),
    ],
)
def test_algebra_decides_the_rest_but_does_no_homework(response, label, verdict):
    import logging

    logging.disable(logging.WARNING)
    try:
        assert verify(response, label) == verdict
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("label", ["", " ", "$$", r"\boxed{}"])
@pytest.mark.parametrize("response", ["", r"\boxed{}", "4"])
def test_nothing_is_no_right_answer(response, label):
    with pytest.raises(ValueError, match="is empty"):
        settle(response, label)
