from typing import Any

import pytest
from slime_core.errors import EngineError
from slime_core.types import Sample, Status
from slime_sglang.answers.transcript import append, complete_versions, mask_earlier, prepare


def answer(ids: list[int], *, reason: str = "stop", version: str = "1", **meta: Any) -> dict:
    return {
        "text": "".join(chr(97 + i) for i in ids),
        "meta_info": {
            "output_token_logprobs": [[-i / 10, i, None] for i in ids],
            "completion_tokens": len(ids),
            "finish_reason": {"type": reason},
            "weight_version": version,
            "cached_tokens": 1,
            "prompt_tokens": 3,
            **meta,
        },
    }


def test_an_answer_becomes_tokens_log_probs_text_version_and_status() -> None:
    sample = Sample(tokens=[50, 51, 52])
    append(sample, answer([1, 2], reason="length"))
    sample.validate()
    assert sample.tokens == [50, 51, 52, 1, 2]
    assert sample.rollout_log_probs == [-0.1, -0.2]
    assert (sample.response, sample.response_length) == ("bc", 2)
    assert sample.status is Status.TRUNCATED
    assert sample.weight_versions == ["1"]
    assert sample.token_versions == [1, 1]
    assert sample.metadata["prefix_cache"] == {"cached_tokens": 1, "prompt_tokens": 3}


@pytest.mark.parametrize(
    ("reason", "status"),
    [("stop", Status.COMPLETED), ("length", Status.TRUNCATED), ("abort", Status.ABORTED)],
)
def test_how_it_ended_is_its_status(reason: str, status: Status) -> None:
    sample = Sample(tokens=[50])
    append(sample, answer([1], reason=reason))
    assert sample.status is status


def test_a_continued_response_records_both_versions_and_may_mask_the_earlier_one() -> None:
    sample = Sample(tokens=[50])
    append(sample, answer([1, 2], reason="abort", version="4"))
    mask_earlier(sample)
    append(sample, answer([3], version="5"))
    sample.validate()
    assert sample.loss_mask == [0, 0, 1]
    assert sample.weight_versions == ["4", "5"]
    assert sample.token_versions == [4, 4, 5]
    assert sample.rollout_log_probs == [-0.1, -0.2, -0.3]
    assert sample.metadata["prefix_cache"] == {"cached_tokens": 2, "prompt_tokens": 6}


def test_tokens_of_tools_have_no_version() -> None:
    sample = Sample(tokens=[50])
    append(sample, answer([1], version="4"))
    sample.tokens += [60, 61]  # what user code does with a tool's output
    sample.response_length += 2
    append(sample, answer([2, 3], version="5"))
    assert sample.token_versions == [4, -1, -1, 5, 5]
    sample.tokens.append(62)
    sample.response_length += 1
    complete_versions(sample)
    assert sample.token_versions == [4, -1, -1, 5, 5, -1]
    sample.tokens, sample.response_length = sample.tokens[:-4], 2
    complete_versions(sample)
    assert sample.token_versions == [4, -1]


def test_tokens_before_the_first_request_and_of_unnumbered_weights_have_no_version() -> None:
    sample = Sample(tokens=[50, 60], response_length=1)
    append(sample, answer([1], version="default"))
    append(sample, answer([2], version="7"))
    assert sample.token_versions == [-1, -1, 7]


def test_a_sample_without_versions_stays_without() -> None:
    sample = Sample(tokens=[50, 60], response_length=1)
    complete_versions(sample)
    assert sample.token_versions is None


def test_an_answer_without_log_probs_is_an_error() -> None:
    with pytest.raises(EngineError, match="log-prob"):
        append(Sample(tokens=[1]), answer([1, 2]) | {"meta_info": {"completion_tokens": 2}})


class Letters:
    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> str:
        assert kwargs["add_generation_prompt"]
        return "".join(f"<{m['role'][0]}>{m['content']}" for m in conversation) + "<a>"


def test_a_prompt_without_tokens_is_tokenized_once() -> None:
    plain, chat = Sample(prompt="ab"), Sample(prompt=[{"role": "user", "content": "x"}])
    ready = Sample(prompt="ab", tokens=[7])
    for sample in (plain, chat, ready):
        prepare(sample, Letters())
    assert plain.tokens == [97, 98]
    assert "".join(map(chr, chat.tokens)) == "<u>x<a>"
    assert ready.tokens == [7]
