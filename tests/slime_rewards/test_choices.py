import pytest
from slime_rewards import exact_match, gpqa

CHOICES = {"A": "a proton", "B": "an electron", "C": "a neutron", "D": "a photon"}


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("The answer is (B).", 1),
        ("Answer: B", 1),
        ("**Answer:** B", 1),
        ("final answer: $\\boxed{B}$", 1),
        (r"\boxed{\text{B}}", 1),
        (r"\boxed{B. an electron}", 1),
        ("<think>The answer is A.</think> I choose option B", 1),
        ("The answer is A. No: the correct choice is B.", 1),
        ("(B)", 1),
        (r"The correct option is \(B\).", 1),
        (r"The correct option is \[\boxed{\mathrm{B}}\]", 1),
        (r"\boxed{\(B\)}", 1),
        (r"The answer is \textbf{B}, because C has no charge.", 1),
        (r"The answer is $\mathrm{C}$, because B has one.", 0),
        ("B", 1),
        ("B.\n", 1),
        ("It must be an electron.", 1),
        ("The answer is A", 0),
        ("It must be a photon.", 0),
        ("An electron or a photon.", 0),
        ("A nice question", 0),
        ("", 0),
        ("The answer is Z", 0),
        ("The answer is B <think>or A?</think>", 1),
        ("The answer is" + " " * 30_000 + "\n\n(B)", 1),
        ("The answer is" + " " * 30_000 + ".", 0),
        ("<think>" * 10_000, 0),
    ],
)
def test_the_letter_an_answer_settles_on(response, right):
    assert gpqa.grade(response, "B", {"choices": CHOICES}) == right


def test_a_choice_that_a_table_leaves_empty_is_no_choice():
    table = {"choices": CHOICES | {"E": None}}
    assert gpqa.grade("It is an electron, none other.", "B", table) == 1.0


def test_what_is_right_is_a_letter_or_the_text_of_a_choice():
    assert gpqa.grade("Answer: C", None, {"correct_letter": "c"}) == 1.0
    assert gpqa.grade("Answer: C", "a neutron", {"choices": list(CHOICES.values())}) == 1.0
    assert gpqa.grade("Answer: H", "(H)", {}) == 1.0
    assert gpqa.grade("Answer: C", "C", {"valid_letters": ["A", "B"]}) == 0.0
    with pytest.raises(ValueError, match="none of the choices"):
        gpqa.grade("Answer: C", "a quark", {"choices": CHOICES})
    with pytest.raises(ValueError, match="needs a label"):
        gpqa.grade("Answer: C", None, {})
    with pytest.raises(ValueError, match="needs a label"):
        gpqa.grade("Answer: C", " ", {})
    assert gpqa.grade("Answer: C", None, {"correct_letter": "(C)"}) == 1.0
    with pytest.raises(ValueError, match="none of the letters"):
        gpqa.grade("Answer: C", None, {"correct_letter": 2, "choices": CHOICES})


@pytest.mark.parametrize(
    ("response", "label", "right"),
    [
        ("Paris", "paris", 1),
        (" Paris.\n", "Paris", 1),
        ("<think>Rome</think>\nParis", "Paris", 1),
        ("I think <answer>New  York</answer>", "new york", 1),
        ("<answer>Rome</answer> <answer>Paris</answer>", "Paris", 1),
        ("It is Paris", "Paris", 0),
        ("", "Paris", 0),
        ("", ".", 0),
        (".", ".", 1),
        ("<answer></answer>", ".", 0),
        ("<answer>no</answer> <ANSWER>Paris</ANSWER> <answer>", "Paris", 1),
        ("<answer>" * 10_000, "Paris", 0),
        ("\uff30\uff41\uff52\uff49\uff53", "Paris", 1),
    ],
)
def test_the_answer_is_the_label(response, label, right):
    assert exact_match.grade(response, label) == right
