"""Responses and labels that nobody expects: wrong answers, found wrong at once."""

import asyncio
import logging
import time
from typing import Any

import numpy as np
import pytest
from slime_core.types import Sample, Status
from slime_rewards import graders
from slime_rewards.config import RewardConfig
from slime_rewards.endless import is_endless, measured
from slime_rewards.select import make_reward
from slime_testing import make_sample

COMPARING = ("math", "deepscaler", "dapo", "f1", "exact_match", "gpqa")
MANY = 5_000
ENDLESS = {
    "fractions": "\\frac{" * MANY + "1" + "}{2}" * MANY,
    "brackets": "(" * MANY + "1" + ")" * MANY,
    "delimiters": "\\left(" * MANY + "1" + "\\right)" * MANY,
    "roots": "\\sqrt{" * MANY + "x" + "}" * MANY,
    "exponents": "x^{" * 30 + "2" + "}" * 30,
    "bars": "|" * 60 + "x" + "|" * 60,
    "few brackets": "(" * 30 + "x" + ")" * 30,
    "a sum": "+".join(["x"] * MANY),
    "a list": ",".join(map(str, range(3_000))),
    "digits": "9" * 10**6,
    "backslashes": "\\" * 10**6,
}


@pytest.fixture(autouse=True)
def quiet():
    """Math-verify warns of every call without a deadline."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def value(name: str, response: str, label: object) -> float:
    began = time.monotonic()
    reward: Any = graders.find(name)(response, label, {})
    assert time.monotonic() - began < 4
    return reward["score"] if isinstance(reward, dict) else reward


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n",
        "\0",
        "\\boxed{\0}",
        "\ud800",
        "\\boxed{\udfff}",
        "x" * 10**6,
        "{" * 10**6,
        "12" * 10**5,
    ],
    ids=[
        "empty",
        "blank",
        "nul",
        "boxed nul",
        "surrogate",
        "boxed surrogate",
        "long",
        "open",
        "digits",
    ],
)
def test_what_is_no_answer_is_wrong(name, response):
    wrong = -1.0 if name == "dapo" else 0.0
    for given in (response, f"</think>{response}"):
        assert value(name, given, "12") == wrong
        assert value(name, given, r"x^2") == wrong


@pytest.mark.parametrize("name", ["math", "deepscaler"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_answers_that_take_for_ever_to_read_are_wrong(name, kind):
    response = f"</think> so it is \\boxed{{{ENDLESS[kind]}}}"
    assert value(name, response, "12") == 0.0
    assert value(name, response, "x^2 + 1") == 0.0
    if name == "math":
        assert value(name, f"it is ${ENDLESS[kind]}$", "x^2 + 1") == 0.0


@pytest.mark.parametrize("unit", [r"\sin ", r"\frac12", "f(x)", r"[0,1]\cup ", "x="])
@pytest.mark.parametrize("around", ["${}$", "$$\n{}\n$$", r"\[{}\]", r"\boxed{{{}{{}}"])
def test_a_formula_of_thousands_of_characters_in_prose_is_passed_over(unit, around):
    response = f"It is $x+1$, as one sees from {around.format(unit * (2800 // len(unit)))}"
    assert value("math", response, "1 + x") == 1.0
    assert value("math", response, "x + 2") == 0.0


def test_a_table_in_prose_is_no_formula_with_many_bars():
    table = "| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |\n| 5 | 6 | 7 | 8 |\n"
    assert value("math", f"{table} so the answer is $\\frac{{1}}{{2}}$", "0.5") == 1.0


@pytest.mark.parametrize("kind", ["fractions", "a list", "brackets"])
def test_what_the_label_says_word_for_word_is_right_however_long(kind):
    assert value("math", f"\\boxed{{{ENDLESS[kind]}}}", ENDLESS[kind]) == 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("((x))[1]", {"brackets": 2, "bars": 0}),
        (r"\frac{1}{\sqrt{2}}", {"braces": 2, "bars": 0}),
        ("x^{y^{2}} + z^{3}", {"exponents": 2, "bars": 0}),
        ("x^{(1+{2})}", {"exponents": 1, "brackets": 1, "braces": 1, "bars": 0}),
        (")))}", {"bars": 0}),
        ("|x| + |y|", {"bars": 4}),
        ("((((", {"brackets": 4, "bars": 0}),
    ],
)
def test_nesting_is_counted_by_kind(text, found):
    assert dict(measured(text)) == found


@pytest.mark.parametrize(
    ("text", "label", "endless"),
    [
        ("((((((x))))))", "y", False),
        ("(((((((x)))))))", "y", True),
        ("(((((((x)))))))", "(((((((y)))))))", False),
        ("x" * 500, "y", False),
        ("x" * 501, "y", True),
        ("x" * 600, "y" * 300, False),
        ("x" * 601, "y" * 300, True),
    ],
)
def test_the_label_may_be_long_and_deep_itself(text, label, endless):
    assert is_endless(text, label) is endless


@pytest.mark.parametrize("name", COMPARING)
def test_labels_need_not_be_text(name):
    plain = {"f1": "12", "exact_match": "12"}
    assert value(name, plain.get(name, r"</think>Answer: \boxed{12}"), 12) == 1.0


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize(
    ("label", "told"),
    [
        ({"style": "rule", "ground_truth": "12"}, r"a dictionary \(of style, ground_truth\) as"),
        (float("nan"), "no label to compare with"),  # what pandas writes for a missing text
        (" ", "an empty label to compare with"),
    ],
)
def test_a_label_that_no_answer_equals_is_an_error_and_not_zero(name, label, told):
    told = "a multiple choice needs a label" if name == "gpqa" else told
    with pytest.raises(ValueError, match=told):
        value(name, r"</think>Answer: \boxed{12}", label)


def score(samples: list[Sample], **config: Any) -> None:
    rewards = make_reward(RewardConfig(**config), {})
    try:
        asyncio.run(rewards(samples))
    finally:
        rewards.close()


def scored(sample: Sample, **config: Any) -> Sample:
    score([sample], **config)
    return sample


def test_such_a_label_is_no_reward_of_a_run():
    told = {"gpqa": "a multiple choice needs a label", "code": "no tests in"}
    samples: list[Sample] = []
    expected: list[str] = []
    for name in (*COMPARING, "code"):
        for label in ({"style": "rule"}, float("nan"), None):
            metadata = {"rm_type": name}
            samples.append(make_sample(reward=None, response="4", label=label, metadata=metadata))
            kind = "a dictionary (of style)" if isinstance(label, dict) else "no label"
            expected.append(told.get(name, kind))
    score(samples)
    assert [sample.reward for sample in samples] == [None] * len(samples)
    for sample, text in zip(samples, expected, strict=True):
        assert sample.status is Status.FAILED
        assert text in sample.metadata["error"]


def test_functions_of_users_get_dictionaries_as_text_and_nothing_as_none(tmp_path):
    path = tmp_path / "rm.py"
    path.write_text(
        "def rm(response, label, metadata):\n"
        "    return {None: 1.0, '{\"a\": 1}': 2.0, ' ': 3.0, '[1]': 4.0, '1.5': 5.0}[label]\n"
    )
    labels = [None, float("nan"), {"a": 1}, " ", [1], 1.5]
    samples = [make_sample(reward=None, label=label) for label in labels]
    score(samples, custom_rm_path=f"{path}:rm")
    assert [sample.reward for sample in samples] == [1.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_arrays_in_metadata_reach_graders_as_lists(tmp_path):
    path = tmp_path / "rm.py"
    path.write_text("def rm(response, label, metadata):\n    return float(sum(metadata['xs']))\n")
    metadata = {"xs": np.array([1, 2, 4]), ("no", "key"): 1}
    sample = make_sample(reward=None, response="r", metadata=metadata)
    assert scored(sample, custom_rm_path=f"{path}:rm").reward == 7.0


@pytest.mark.parametrize(("label", "reward"), [(True, 1.0), (False, 0.0), (1, 0.0), ([True], 0.0)])
def test_a_switch_is_a_label(label, reward):
    sample = make_sample(reward=None, response="true", label=label)
    assert scored(sample, rm_type="exact_match").reward == reward
