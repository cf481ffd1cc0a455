from typing import Any

from slime_sglang.answers.continued import (
    TOKEN_VERSIONS,
    ended_by_length,
    is_cut_off,
    joined,
    rest_of,
    version_runs,
    with_versions,
)
from slime_testing.chars import CharTokenizer


def answer(text: str, version: str, reason: str = "abort") -> dict[str, Any]:
    rows = [[-0.5, ord(letter), None] for letter in text]
    meta = {
        "output_token_logprobs": rows,
        "completion_tokens": len(rows),
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "weight_version": version,
        "finish_reason": {"type": reason},
    }
    return {"text": text, "meta_info": meta}


BODY = {
    "input_ids": [1, 2, 3],
    "return_logprob": True,
    "sampling_params": {"max_new_tokens": 5, "min_new_tokens": 3, "temperature": 1.0},
}


def test_the_rest_is_asked_for_behind_what_is_written() -> None:
    rest = rest_of(BODY, answer("ab", "4"))
    assert rest == {
        "input_ids": [1, 2, 3, 97, 98],
        "return_logprob": True,
        "sampling_params": {"max_new_tokens": 3, "min_new_tokens": 1, "temperature": 1.0},
    }
    assert BODY["input_ids"] == [1, 2, 3]
    assert rest_of(BODY, answer("abcde", "4")) is None


def test_an_answer_that_is_cut_off_behind_its_last_token_is_whole() -> None:
    whole = ended_by_length(BODY, answer("abcde", "4"))
    assert whole["meta_info"]["finish_reason"] == {"type": "length", "length": 5}
    assert not is_cut_off(whole)
    for other in (answer("abcd", "4"), answer("abc", "4", "stop")):
        assert ended_by_length(BODY, other) is other


def test_parts_are_one_answer_whose_tokens_know_their_weights() -> None:
    parts = [with_versions(answer("ab", "4"), None), with_versions(answer("c", "6", "stop"), None)]
    whole = joined(parts, CharTokenizer(), skip_special_tokens=False)
    meta = whole["meta_info"]
    assert whole["text"] == "abc"
    assert meta[TOKEN_VERSIONS] == [4, 4, 6]
    assert (meta["completion_tokens"], meta["prompt_tokens"], meta["cached_tokens"]) == (3, 3, 1)
    assert meta["finish_reason"] == {"type": "stop"}
    assert not is_cut_off(whole)
    assert version_runs(meta) == [(2, "4"), (1, "6")]


def test_one_part_is_the_answer_itself() -> None:
    part = with_versions(answer("ab", "4", "stop"), None)
    assert joined([part], CharTokenizer(), skip_special_tokens=False) is part
    assert version_runs(part["meta_info"]) == [(2, "4")]


def test_tokens_of_a_held_request_count_as_old_as_they_may_be() -> None:
    held = with_versions(answer("ab", "7", "stop"), 5)
    assert held["meta_info"][TOKEN_VERSIONS] == [5, 5]
    assert with_versions(answer("a", "default"), 5)["meta_info"][TOKEN_VERSIONS] == [-1]


def test_an_answer_without_tokens_still_names_its_weights() -> None:
    assert version_runs(with_versions(answer("", "7"), None)["meta_info"]) == [(0, "7")]
