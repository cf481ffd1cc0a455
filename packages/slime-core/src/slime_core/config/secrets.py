"""Passwords and keys: values that no file, log or record shows."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "(hidden)"

_SECRET = re.compile(
    r"(?:api|access|secret|private|wandb)[_-]?key(?:s)?$|passwo?r?d|credential|secret"
    r"|(?:^|hf|api|auth|access|bearer)[_-]?token$|(?-i:_TOKEN$)",  # as of the environment
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a flag or key of this name holds a password or a key.

    >>> [is_secret(name) for name in ("wandb_key", "sglang_api_key", "label_key", "eos_token")]
    [True, True, False, False]
    """
    return _SECRET.search(name) is not None


def hide(name: str, value: Any) -> Any:
    """``value``, or ``HIDDEN`` where ``name`` is a secret's and it has one."""
    return HIDDEN if value and not isinstance(value, bool) and is_secret(name) else value


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with secrets hidden, in mappings within it as well."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else hide(name, value)
        for name, value in values.items()
    }


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """A command line with what follows a secret's flag hidden.

    >>> words_without_secrets(["--lr", "1e-6", "--wandb-key", "abc", "--sglang-api-key=def"])
    ['--lr', '1e-6', '--wandb-key', '(hidden)', '--sglang-api-key=(hidden)']
    """
    found: list[str] = []
    secret = False
    for word in words:
        name, equals, value = word.partition("=")
        is_flag = word.startswith("--")
        if not is_flag:
            found.append(HIDDEN if secret else _object_without_secrets(word))
            continue
        secret = is_secret(name)
        shown = HIDDEN if secret else _object_without_secrets(value)
        found.append(f"{name}={shown}" if equals else word)
        secret = secret and not equals
    return found


def _object_without_secrets(word: str) -> str:
    """A word that is a JSON object, as of environment variables, with its secrets hidden."""
    try:
        values: Any = json.loads(word) if word.startswith("{") else None
    except ValueError:
        return word
    if not isinstance(values, dict) or without_secrets(values) == values:
        return word
    return json.dumps(without_secrets(values))
