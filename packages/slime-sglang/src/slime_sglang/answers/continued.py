"""One answer made of several: requests that a publish cut off go on under the new weights."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from slime_core.data.chat import Tokenizer

TOKEN_VERSIONS = "token_versions"
"""Key of an answer's ``meta_info``: which weights wrote each of its tokens."""

UNKNOWN = -1

Answer = dict[str, Any]


def is_cut_off(answer: Mapping[str, Any]) -> bool:
    """Whether the engine stopped before the response ended."""
    return (answer["meta_info"].get("finish_reason") or {}).get("type") == "abort"


def token_ids(answer: Mapping[str, Any]) -> list[int]:
    """What the engine wrote."""
    rows = answer["meta_info"].get("output_token_logprobs") or []
    return [int(row[1]) for row in rows]


def rest_of(body: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request for what is still to be written; None when there is no room left."""
    written = token_ids(answer)
    params = dict(body["sampling_params"])
    params["max_new_tokens"] -= len(written)
    if params["max_new_tokens"] <= 0:
        return None
    if params.get("min_new_tokens"):
        params["min_new_tokens"] = max(0, params["min_new_tokens"] - len(written))
    ids = [*body["input_ids"], *written]
    return {**body, "input_ids": ids, "sampling_params": params}


def ended_by_length(body: Mapping[str, Any], answer: Answer) -> Answer:
    """``answer``, which is whole if it was cut off just when it had its last token."""
    if not is_cut_off(answer) or rest_of(body, answer) is not None:
        return answer
    reason = {"type": "length", "length": len(token_ids(answer))}
    return {**answer, "meta_info": {**answer["meta_info"], "finish_reason": reason}}


def with_versions(answer: Answer, asked_at: int | None) -> Answer:
    """``answer`` saying for every token which weights wrote it.

    The engine names the weights it had when the response ended. Weights that came while the request
    was held in the engine (``retract``, ``in_place``) leave no trace in it, so every token then
    counts as written by the weights of the time when it was ``asked``: none is younger than said.
    """
    meta = answer["meta_info"]
    ended = str(meta.get("weight_version", ""))
    version = int(ended) if ended.isdecimal() else UNKNOWN
    if asked_at is not None and version != UNKNOWN:
        version = min(version, asked_at)
    count = len(token_ids(answer))
    return {**answer, "meta_info": {**meta, TOKEN_VERSIONS: [version] * count}}


def joined(parts: Sequence[Answer], tokenizer: Tokenizer, *, skip_special_tokens: bool) -> Answer:
    """The parts as the one answer they are; its text is decoded anew from all tokens."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    metas = [part["meta_info"] for part in parts]
    rows = [row for meta in metas for row in meta.get("output_token_logprobs") or []]
    text = tokenizer.decode([row[1] for row in rows], skip_special_tokens=skip_special_tokens)
    meta = {
        **metas[-1],
        "output_token_logprobs": rows,
        TOKEN_VERSIONS: [version for meta in metas for version in meta[TOKEN_VERSIONS]],
        "completion_tokens": len(rows),
        "prompt_tokens": metas[0].get("prompt_tokens", 0),
        "cached_tokens": metas[0].get("cached_tokens", 0),
    }
    return {**last, "text": text, "meta_info": meta}


def version_runs(meta: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(how many tokens, which weights wrote them) in order; one entry, of none, without tokens."""
    rows = meta.get("output_token_logprobs") or []
    versions: Sequence[int] = meta.get(TOKEN_VERSIONS) or []
    if len(set(versions)) > 1:
        return [(len(list(run)), str(version)) for version, run in groupby(versions)]
    return [(len(rows), str(versions[0] if versions else meta.get("weight_version", "")))]
