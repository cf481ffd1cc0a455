r"""What upstream's reward hub is known to do, type by type."""

import logging

import pytest
from slime_rewards import graders

THOUGHT = "<think>so</think>"
CASES = [
    # math: the last box of the response against the box in the label, or the label
    ("math", r"\boxed{42}", "42", 1.0),
    ("math", r"\boxed{42}", r"so \boxed{42}", 1.0),
    ("math", r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
    ("math", r"\boxed{43}", "42", 0.0),
    ("boxed_math", "42", "42", 0.0),
    ("boxed_math", r"\boxed{42}", "42", 1.0),
    # deepscaler: a box behind </think> or ###Response, else 0
    ("deepscaler", THOUGHT + r"\boxed{42}", "42", 1.0),
    ("deepscaler", r"hm ###Response \boxed{42}", "42", 1.0),
    ("deepscaler", r"\boxed{42}", "42", 0.0),
    ("deepscaler", THOUGHT + "42", "42", 0.0),
    ("deepscaler", r"<think>\boxed{42}</think> no idea", "42", 0.0),
    ("deepscaler", THOUGHT + r"\boxed{1} \boxed{42}", r"\boxed{42}", 1.0),
    ("deepscaler", THOUGHT + r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
    # f1: words without case, punctuation and articles; closed answers as a whole
    ("f1", "The Cat, sat!", "cat sat", 1.0),
    ("f1", "cat", "a cat sat", 2 / 3),
    ("f1", "yes it is", "yes", 0.0),
    ("f1", "yes", "Yes.", 1.0),
    ("f1", "noanswer", "cat", 0.0),
    ("boxed_f1", r"I say \boxed{the cat}", "cat", 1.0),
    ("boxed_f1", "the cat", "cat", 0.0),
]
DAPO = [
    ("Answer: 42", "42", True, "42"),
    ("answer : $42$", "42", True, "42"),
    ("Answer: 41\nAnswer: 42", "42", True, "42"),
    ("Answer: 42" + " " * 301, "42", False, "[INVALID]"),
    ("42", "42", False, "[INVALID]"),
    (r"Answer: \text{42} degrees", "42", True, "42"),
    (r"Answer: 1,234", "1234", True, "1234"),
    (r"Answer: \dfrac{1}{2}", r"\frac12", True, r"\frac{1}{2}"),
    ("Answer: x = 5", "5", True, "5"),
    (r"Answer: 50\%", "50", True, "50"),
    ("Answer: 43", "42", False, "43"),
]


@pytest.mark.parametrize(("rm_type", "response", "label", "reward"), CASES)
def test_responses_score_as_upstream_says(rm_type, response, label, reward):
    logging.disable(logging.WARNING)
    try:
        assert graders.find(rm_type)(response, label, {}) == pytest.approx(reward)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("response", "label", "right", "answer"), DAPO)
def test_dapo_is_a_dictionary_with_a_signed_score(response, label, right, answer):
    found = graders.find("dapo")(response, label, {})
    assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": answer}


def test_every_name_is_found_and_others_are_paths():
    for name in graders.NAMES:
        assert callable(graders.find(name))
        assert callable(graders.find(f"boxed_{name}"))
    assert graders.find("slime_rewards.gpqa.grade")("the answer is B", "B", {}) == 1.0
