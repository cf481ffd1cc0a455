"""Instructions that a program can check: ``--rm-type ifbench``.

A sample's metadata names them as the records of IFEval and IFBench do: ``instruction_id_list`` and
``kwargs``, one dictionary each (or ``instructions``: dictionaries with ``id`` and the keywords).
Sources: IFEval, arXiv:2311.07911; IFBench, arXiv:2507.02833. What is checked here needs neither
models nor corpora; sentences and words are told apart by simple rules.
"""

from typing import Any, cast

from slime_rewards import instructions

_NESTED = "record"


def grade(response: str, label: str | None, metadata: dict[str, Any]) -> float:
    """1 where every instruction is followed, else 0.

    Raises:
        ValueError: no instructions, or one that is unknown or misses a keyword.
    """
    del label
    answer = response.rpartition("</think>")[2].strip()
    asked = read(metadata)
    followed = [_follows(answer, name, keywords) for name, keywords in asked]
    return float(bool(answer) and all(followed))


def read(metadata: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names of instructions and their keywords."""
    nested = metadata.get(_NESTED)
    record = cast("dict[str, Any]", nested) if isinstance(nested, dict) else metadata
    if record.get("instructions"):
        return [
            (item["id"], {key: value for key, value in item.items() if key != "id"})
            for item in record["instructions"]
        ]
    names = record.get("instruction_id_list")
    if not names:
        raise ValueError("metadata has no instruction_id_list: which instructions were given?")
    keywords = record.get("kwargs") or [{}] * len(names)
    if len(keywords) != len(names):
        raise ValueError(f"metadata has {len(names)} instructions, but {len(keywords)} kwargs")
    return [(n, dict(k or {})) for n, k in zip(names, keywords, strict=True)]


def _follows(answer: str, name: str, keywords: dict[str, Any]) -> bool:
    check = instructions.CHECKS.get(name)
    if check is None:
        raise ValueError(
            f"instruction {name!r} cannot be checked; there are {', '.join(instructions.CHECKS)}"
        )
    given = {key: value for key, value in keywords.items() if value is not None}
    try:
        return bool(check(answer, given))
    except KeyError as error:
        raise ValueError(f"instruction {name!r} lacks keyword {error}: it has {given}") from error
