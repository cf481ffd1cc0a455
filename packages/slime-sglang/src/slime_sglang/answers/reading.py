"""What an engine said over HTTP, checked for the shape that everything after it relies on."""

import json
from collections.abc import Sequence
from typing import Any, cast

from slime_sglang.answers.continued import Answer

_SHOWN = 300


class UnreadableError(ValueError):
    """Something else than an answer to /generate; the message has its beginning."""


def read_answer(text: str) -> Answer:
    """The answer to a /generate request.

    Raises:
        UnreadableError: ``text`` is cut short, no JSON, or JSON of another shape.
    """
    try:
        problem = _problem(value := json.loads(text))
    except ValueError as error:
        raise UnreadableError(f"it is no JSON ({error}): {_shown(text)}") from error
    if problem:
        raise UnreadableError(f"{problem}: {_shown(text)}")
    return value


def _problem(value: Any) -> str | None:
    meta: Any = value.get("meta_info") if isinstance(value, dict) else None
    if not isinstance(meta, dict):
        return "it has no `meta_info`"
    about = cast("dict[str, Any]", meta)
    if not isinstance(about.get("finish_reason") or {}, dict):
        return "its `finish_reason` is no object"
    rows = about.get("output_token_logprobs") or []
    if not isinstance(rows, list) or not all(map(_is_row, cast("list[Any]", rows))):
        return "its `output_token_logprobs` are not [log-probability, token, ...]"
    return None


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(cast("list[Any]", row)) < 2:
        return False
    log_prob, token = cast("Sequence[Any]", row)[:2]
    return isinstance(log_prob, int | float) and isinstance(token, int)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
