import time

import pytest
from slime_rewards import ifbench, instructions

CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "Cat and dog", "catalogue and dog"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a catalogue", "a cat"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a a", "a"),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
        "tree"[:3],
        "tree",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "a b", "a b c"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One 1.5 here. Two!",
        "One 1.5 here.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
        "one\n\nTwo is",
        "two\n\none",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "x\nP.P.S. y", "x P.S. y"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a*"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 x Part 2 y",
        "Part 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>> text", "<< >> text"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it: no", "No. Say it"),
    ("startend:end_checker", {"end_phrase": "the end"}, "This is the end", "the end is near"),
    ("startend:quotation", {}, '"quoted"', '"half'),
    ("change_case:english_capital", {}, "ALL CAPS 1", "Not All"),
    ("change_case:english_lowercase", {}, "all small", "Not all"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "at most"},
        "ONE two",
        "ONE TWO",
    ),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("copy:copy", {"prompt_to_repeat": "ab"}, "ab", "ab c"),
    ("count:unique_word_count", {"N": 2}, "a b a", "a a A"),
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "a b", "a b c d"),
    ("count:numbers", {"N": 2}, "1 and 2.5", "1"),
    ("words:no_consecutive", {}, "an ox", "an ant"),
    ("words:alphabet", {}, "an ox".replace("ox", "bee"), "an ox"),
    ("words:repeats", {"small_n": 1}, "a b", "a a"),
    ("first_word:first_word_answer", {"first_word": "yes"}, "Yes, it is", "It is"),
    ("last_word:last_word_answer", {"last_word": "is"}, "Yes, it is.", "It was."),
    ("format:no_whitespace", {}, "ab", "a b"),
]


@pytest.mark.parametrize(("name", "keywords", "good", "bad"), CASES)
def test_each_instruction_tells_followed_from_not(name, keywords, good, bad):
    metadata = {"instruction_id_list": [name], "kwargs": [keywords]}
    assert ifbench.grade(good, None, metadata) == 1.0
    assert ifbench.grade(bad, None, metadata) == 0.0


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(instructions.CHECKS)


def test_all_instructions_must_be_followed_behind_the_thoughts():
    metadata = {
        "instructions": [{"id": "punctuation:no_comma"}, {"id": "count:numbers", "N": 1}],
    }
    assert ifbench.grade("<think>a, b</think> 1", None, metadata) == 1.0
    assert ifbench.grade("1, no", None, metadata) == 0.0
    assert ifbench.grade("<think>1</think>", None, metadata) == 0.0


def test_records_may_be_nested_and_have_keywords_that_are_null():
    record = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"N": None}]}
    assert ifbench.grade("a", None, {"record": record}) == 1.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no instruction_id_list"),
        ({"instruction_id_list": ["a:b"]}, "'a:b' cannot be checked; there are"),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{}]}, "lacks keyword 'N'"),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{}, {}]}, "1 instructions, but 2"),
    ],
)
def test_what_cannot_be_checked_is_an_error(metadata, message):
    with pytest.raises(ValueError, match=message):
        ifbench.grade("a", None, metadata)


def test_nesting_too_deep_to_be_read_is_no_json():
    assert not instructions.CHECKS["detectable_format:json_format"]("[" * 100_000, {})


@pytest.mark.parametrize(
    ("name", "keywords", "answer"),
    [
        ("length_constraints:number_sentences", {"num_sentences": 2}, "a." + " " * 100_000 + "."),
        (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": 1},
            "**" + "a" * 50_000,
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "a" + "\n" * 100_000 + "b"),
        ("detectable_content:postscript", {}, "a" + "\n" * 100_000 + "b"),
    ],
)
def test_an_answer_that_repeats_itself_is_read_in_one_pass(name, keywords, answer):
    start = time.perf_counter()
    assert not instructions.CHECKS[name](answer, keywords)
    assert time.perf_counter() - start < 1.0
