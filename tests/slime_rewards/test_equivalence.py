"""Answers that mean the same, or nearly; graded here and by math-verify alone."""
# ruff: noqa: RUF001 -- symbols that look like others are meant

import logging

import pytest
from math_verify import parse
from math_verify import verify as verify_alone
from slime_rewards import math

CASES = [
    # fractions and decimals
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    (r"\boxed{\dfrac{3}{6}}", r"\frac12", 1),
    (r"\boxed{1/3}", r"\frac{1}{3}", 1),
    (r"\boxed{0.3333}", r"\frac{1}{3}", 0),
    (r"\boxed{-\frac{3}{4}}", "-0.75", 1),
    (r"\boxed{\frac{-3}{4}}", r"-\frac{3}{4}", 1),
    (r"\boxed{2\frac{1}{2}}", "2.5", 1),
    (r"\boxed{\frac{2}{4}}", "2/4", 1),
    (r"\boxed{1{,}000}", "1000", 1),
    (r"\boxed{1,234,567}", "1234567", 1),
    (r"\boxed{3.50}", "3.5", 1),
    (r"\boxed{.5}", "0.5", 1),
    (r"\boxed{1e3}", "1000", 0),
    (r"\boxed{10^{-3}}", "0.001", 0),
    (r"\boxed{2\times 10^5}", "200000", 1),
    (r"\boxed{-1.2 \cdot 10^{-4}}", "-0.00012", 1),
    (r"\boxed{6.02\times10^{23}}", r"6.02 \cdot 10^{23}", 1),
    (r"\boxed{2\times10^5}", "20000", 0),
    (r"\boxed{1.2\times 10}", "12", 0),
    # inequalities
    (r"\boxed{3 > x}", "x < 3", 1),
    (r"\boxed{(-\infty, 3)}", "x < 3", 1),
    (r"\boxed{[5, \infty)}", r"x \ge 5", 1),
    (r"\boxed{x < 4}", "x < 3", 0),
    (r"\boxed{x \le 3}", "x < 3", 0),
    (r"\boxed{3}", "x < 3", 0),
    (r"\boxed{x < 3}", "3", 0),
    # sets, tuples, intervals
    (r"\boxed{\{1,2,3\}}", r"\{3,2,1\}", 1),
    (r"\boxed{\{1,2\}}", r"\{1,2,3\}", 0),
    (r"\boxed{(1,2)}", "(1, 2)", 1),
    (r"\boxed{(2,1)}", "(1,2)", 0),
    (r"\boxed{[0,1)}", "[0, 1)", 1),
    (r"\boxed{[0,1]}", "[0,1)", 0),
    (r"\boxed{(-\infty,2)\cup(3,\infty)}", r"(3,\infty)\cup(-\infty,2)", 1),
    (r"\boxed{x \in [1, 2]}", "[1,2]", 1),
    (r"\boxed{1,2,3}", "1, 2, 3", 1),
    (r"\boxed{3, 1, 2}", "1, 2, 3", 1),
    # units, percents, money, degrees
    (r"\boxed{5\text{ cm}}", "5", 1),
    (r"\boxed{5 \mathrm{~cm}}", "5", 1),
    (r"\boxed{12\text{ hours}}", "12", 1),
    (r"\boxed{50\%}", "50", 1),
    (r"\boxed{50\%}", r"50\%", 1),
    (r"\boxed{\$18.90}", "18.90", 1),
    (r"\boxed{\$18}", r"18", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{45^{\circ}}", r"45^\circ", 1),
    # matrices
    (
        r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        1,
    ),
    (
        r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        1,
    ),
    (
        r"\boxed{\begin{pmatrix}1&2\\3&5\end{pmatrix}}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        0,
    ),
    # LaTeX that only sets type
    (r"\boxed{\left(\frac{1}{2}, 3\right)}", r"(\frac{1}{2},3)", 1),
    (r"\boxed{\displaystyle 7}", "7", 1),
    (r"\boxed{7.}", "7", 1),
    (r"\boxed{\,7\!}", "7", 1),
    (r"\boxed{\text{B}}", "B", 1),
    (r"\boxed{\textbf{(B)}}", "B", 1),
    (r"\boxed{\mathbf{42}}", "42", 1),
    (r"\boxed{x=5}", "5", 1),
    (r"\boxed{5}", "x=5", 1),
    (r"\boxed{f(x)=2x+1}", "2x+1", 1),
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1),
    (r"\boxed{\text{Evelyn}}", "Evelyn", 1),
    (r"\boxed{\text{Bob}}", "Evelyn", 0),
    (r"\boxed{\sqrt2}", r"\sqrt{2}", 1),
    (r"\boxed{2\sqrt3}", r"\sqrt{12}", 1),
    (r"\boxed{\tfrac{\pi}{4}}", r"\frac{\pi}{4}", 1),
    # algebra
    (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
    (r"\boxed{x^2-1}", "(x-1)(x+1)", 1),
    (r"\boxed{x+1}", "x+2", 0),
    (r"\boxed{\frac{x}{2}}", r"\frac{1}{2}x", 1),
    (r"\boxed{e^{i\pi}+1}", "0", 0),
    (r"\boxed{y=2x+3}", "y=3+2x", 1),
    (r"\boxed{x²+1}", "x^2+1", 1),
    (r"\boxed{\sin^2x+\cos^2x}", "1", 0),
    # several boxes, boxes in boxes, sentences
    (r"First \boxed{3}, but no: \boxed{4}.", "4", 1),
    (r"First \boxed{4}, but no: \boxed{3}.", "4", 0),
    (r"\boxed{\boxed{7}}", "7", 1),
    (r"\fbox{7}", "7", 1),
    (r"So the answer is $\boxed{\text{7}}$.", "7", 1),
    ("The final answer is $\\frac{1}{2}$.", "0.5", 1),
    ("The answer is 7.", "7", 1),
    ("7", r"\boxed{7}", 1),
    ("<think>8</think>7", "7", 1),
    # Unicode
    (r"\boxed{−5}", "-5", 1),
    (r"\boxed{½}", "0.5", 1),
    (r"\boxed{π}", r"\pi", 1),
    (r"\boxed{√2}", r"\sqrt{2}", 1),
    (r"\boxed{３}", "3", 1),
    (r"\boxed{90°}", "90", 1),
    (r"\boxed{2×3}", "6", 0),
    (r"\boxed{2×10⁵}", "200000", 1),
    (r"\boxed{∞}", r"\infty", 1),
    (r"\boxed{x ≤ 3}", r"x \le 3", 1),
    # words and nothing
    (r"\boxed{\text{yes}}", "yes", 1),
    (r"\boxed{Yes}", "yes", 1),
    (r"\boxed{no}", "yes", 0),
    (r"\boxed{}", "7", 0),
    ("", "7", 0),
    ("I do not know.", "7", 0),
]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def alone(response, label):
    """What the library says by itself, with labels as its documentation wants them."""
    gold = parse(f"${label}$", parsing_timeout=None) or parse(label, parsing_timeout=None)
    found = parse(response, parsing_timeout=None)
    return float(verify_alone(gold, found, timeout_seconds=None))


@pytest.mark.parametrize(("response", "label", "right"), CASES)
def test_equal_answers_are_right_and_others_wrong(response, label, right):
    assert math.grade(response, label) == right


def test_no_right_answer_of_the_library_is_lost_and_it_is_outdone():
    lost, gained = [], []
    for response, label, right in CASES:
        theirs = alone(response, label)
        if theirs == right != math.grade(response, label):
            lost.append((response, label))
        gained += [(response, label)] * (theirs != right)
    assert lost == []
    assert len(gained) >= 10
