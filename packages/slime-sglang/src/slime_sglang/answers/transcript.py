"""Put an engine's answer into a sample; nothing here talks to anyone."""

from collections.abc import Mapping
from typing import Any

from slime_core.data.chat import Tokenizer, conversation, render
from slime_core.data.conversation import UNWRITTEN
from slime_core.errors import EngineError
from slime_core.types import Sample, Status

from slime_sglang.answers.continued import TOKEN_VERSIONS

PREFIX_CACHE = "prefix_cache"
"""Key of ``sample.metadata``: {"cached_tokens", "prompt_tokens"} summed over its requests."""

STATUS: Mapping[str, Status] = {
    "length": Status.TRUNCATED,
    "abort": Status.ABORTED,
    "stop": Status.COMPLETED,
}


def prepare(sample: Sample, tokenizer: Tokenizer) -> None:
    """Tokenize the prompt of a sample that has no tokens yet."""
    if sample.tokens:
        return
    text = sample.prompt
    if not isinstance(text, str):
        text = render(
            tokenizer,
            conversation(text),
            tools=sample.metadata.get("tools"),
            add_generation_prompt=True,
            template_kwargs=sample.apply_chat_template_kwargs,
        )
    sample.tokens = tokenizer.encode(text, add_special_tokens=False)


def mask_earlier(sample: Sample) -> None:
    """Train on none of the response tokens that are there already."""
    sample.loss_mask = [0] * sample.response_length


def append(sample: Sample, answer: Mapping[str, Any]) -> None:
    """Add the tokens, log-probabilities and text of one /generate answer, and how it ended."""
    meta = answer["meta_info"]
    tokens, log_probs = written(meta)
    known = sample.rollout_log_probs
    if known is None and sample.response_length:
        known = [0.0] * sample.response_length
    version = str(meta.get("weight_version", ""))
    number = int(version) if version.isdecimal() else UNWRITTEN
    numbers = meta.get(TOKEN_VERSIONS, [number] * len(tokens))
    sample.token_versions = [*_versions_so_far(sample), *numbers]
    sample.tokens = [*sample.tokens, *tokens]
    sample.rollout_log_probs = [*(known or []), *log_probs]
    sample.response += answer.get("text") or ""
    sample.response_length += len(tokens)
    if sample.loss_mask is not None:
        sample.loss_mask = [*sample.loss_mask, *([1] * len(tokens))]
    for name in dict.fromkeys([*(str(n) for n in numbers if n != UNWRITTEN), version]):
        if not sample.weight_versions or sample.weight_versions[-1] != name:
            sample.weight_versions.append(name)
    reason = (meta.get("finish_reason") or {}).get("type")
    sample.status = STATUS.get(str(reason), sample.status)
    count_cached(sample, meta)


def complete_versions(sample: Sample) -> None:
    """One version per response token, also where user code added or cut tokens at the end.

    A sample that no engine answered, or whose maker says nothing of versions, stays without.
    """
    if sample.token_versions is not None:
        sample.token_versions = _versions_so_far(sample)


def _versions_so_far(sample: Sample) -> list[int]:
    known = (sample.token_versions or [])[: sample.response_length]
    return known + [UNWRITTEN] * (sample.response_length - len(known))


def written(meta: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Tokens of an answer and their log-probabilities."""
    rows = meta.get("output_token_logprobs") or []
    completed = meta.get("completion_tokens", len(rows))
    if completed and not rows:
        raise EngineError("the engine answered without log-probabilities (return_logprob)")
    return [int(row[1]) for row in rows], [float(row[0]) for row in rows]


def count_cached(sample: Sample, meta: Mapping[str, Any]) -> None:
    """Add to what ``sample`` knows about the engine's prefix cache."""
    counts: dict[str, int] = sample.metadata.setdefault(
        PREFIX_CACHE, {"cached_tokens": 0, "prompt_tokens": 0}
    )
    for key in counts:
        counts[key] += int(meta.get(key) or 0)
