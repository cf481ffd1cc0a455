"""Sets to evaluate on: from ``--eval-prompt-data``, or each with settings in ``--eval-config``.

    eval:
      defaults: {temperature: 0.6, n_samples_per_eval_prompt: 8}
      datasets:
        - {name: aime, path: /data/aime.jsonl, max_response_len: 8192}
        - {name: gpqa, path: /data/gpqa.jsonl, rm_type: gpqa, n_samples_per_eval_prompt: 4}

A set's own value comes first, then the file's defaults, then ``--eval-*``, then ``--rollout-*``.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from slime_core.config.flags import Flag, derived, flag, flags_of, json_object
from slime_core.config.yaml_file import read_value


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDataset:
    """One set of prompts, how it is answered and how the answers are scored."""

    name: str
    """What its metrics are called: eval/NAME."""
    path: str
    """File of prompts, optionally with a slice of rows."""
    input_key: str
    """Column of the prompt."""
    label_key: str | None
    """Column of the reference answer."""
    compared_by: str | None = derived(default=None)
    """The reward that compares responses with labels, where one does: every row needs one."""
    tool_key: str
    """Column of tool definitions."""
    metadata_key: str
    """Column of a mapping that travels with every sample."""
    apply_chat_template: bool
    """Turn prompts into text with the tokenizer's chat template."""
    apply_chat_template_kwargs: dict[str, Any] = flag(parse=json_object)
    """Keyword arguments of the chat template."""
    metadata_overrides: dict[str, Any] = flag(factory=dict[str, Any], parse=json_object)
    """Entries added to the metadata of every sample."""
    max_prompt_len: int | None = flag(at_least=1)
    """Leave out longer prompts, in tokens."""
    n_samples_per_eval_prompt: int = flag(at_least=1)
    """Responses per prompt."""
    temperature: float = flag(at_least=0)
    """Softmax temperature, 0 for greedy."""
    top_p: float = flag(above=0, at_most=1)
    """Nucleus mass."""
    top_k: int = flag(at_least=-1)
    """Tokens kept."""
    repetition_penalty: float | None = flag(default=None, above=0, at_most=2)
    """Divides the scores of tokens that are there already; 1 changes nothing."""
    max_response_len: int = flag(at_least=1)
    """Longest response in tokens."""
    max_context_len: int | None = flag(at_least=2)
    """Longest prompt plus response in tokens."""
    min_new_tokens: int | None = flag(at_least=0)
    """Shortest response, in tokens."""
    stop: tuple[str, ...] | None
    """Texts that end a response."""
    stop_token_ids: tuple[int, ...] | None
    """Token ids that end a response."""
    skip_special_tokens: bool
    """Leave special tokens out of the response's text."""
    no_stop_trim: bool = True
    """Keep the text that ended a response."""
    rm_type: str | None = None
    """Built-in reward; the run's where not given."""
    custom_rm_path: str | None = None
    """Reward function; the run's where not given."""
    reward_key: str | None
    """Entry of a dictionary reward to report."""
    custom_generate_function_path: str | None = None
    """Function that generates a sample; the run's where not given."""


FALLBACKS = {
    **{
        name: f"eval_{name}"
        for name in (
            "input_key", "label_key", "tool_key", "max_prompt_len", "temperature", "top_p",
            "top_k", "max_response_len", "max_context_len", "min_new_tokens", "reward_key",
        )
    },
    **{name: f"rollout_{name}" for name in ("stop", "stop_token_ids", "skip_special_tokens")},
    **{
        name: name
        for name in (
            "metadata_key", "apply_chat_template", "apply_chat_template_kwargs",
            "n_samples_per_eval_prompt",
        )
    },
}  # fmt: skip
"""Fields of a set -> the flags of the run that stand in for them."""


@dataclass(frozen=True, slots=True)
class EvalSets:
    """The sets that can be read, and a complaint for everything that cannot."""

    datasets: tuple[EvalDataset, ...]
    problems: tuple[str, ...]


def eval_datasets(
    named: Sequence[tuple[str, str]], file: Mapping[str, Any] | None, run: Mapping[str, Any]
) -> EvalSets:
    """Every set of a run.

    Args:
        named: (name, path) of ``--eval-prompt-data``.
        file: the content of ``--eval-config``, if it is given.
        run: values of the run's own fields, by name.
    """
    problems: list[str] = []
    rows: list[Mapping[str, Any]] = [{"name": name, "path": path} for name, path in named]
    rows += _rows_of(file or {}, problems)
    run_values = {name: run[fallback] for name, fallback in FALLBACKS.items()}
    found: list[EvalDataset] = []
    for row in rows:
        name, path = row.get("name"), row.get("path")
        if not name or not path:
            problems.append(f"--eval-config: a set needs a name and a path, got {dict(row)}")
        elif any(other.name == name for other in found):
            problems.append(f"--eval-config: there are two sets called {name}")
        else:
            found.append(EvalDataset(**{**run_values, **row}))
    return EvalSets(tuple(found), tuple(problems))


def _rows_of(file: Mapping[str, Any], problems: list[str]) -> list[Mapping[str, Any]]:
    """What the file says of each set, its defaults filled in."""
    if not file:
        return []
    content: Any = file.get("eval") if set(file) == {"eval"} else None
    if not isinstance(content, Mapping) or not set(content) <= {"defaults", "datasets"}:
        problems.append("--eval-config: expects eval: {defaults: {...}, datasets: [{...}, ...]}")
        return []
    defaults: Any = content.get("defaults") or {}
    entries: Any = content.get("datasets") or []
    if not isinstance(defaults, Mapping) or not _are_mappings(entries):
        problems.append("--eval-config: defaults is a mapping and datasets a list of mappings")
        return []
    if not entries:
        problems.append("--eval-config: datasets is empty")
    common = _checked(defaults, "defaults", problems)
    for key in {"name", "path"} & set(common):
        problems.append(f"--eval-config defaults: {key} belongs to a set")
    return [
        {**common, **_checked(entry, str(entry.get("name", "a set")), problems)}
        for entry in entries
    ]


def _are_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)


def _checked(row: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in row.items():
        known = _fields().get(key)
        if known is None:
            problems.append(f"--eval-config {where}: {_unknown(key, _fields())}")
        elif value is not None:
            try:
                values[key] = read_value(known, value).value
            except (TypeError, ValueError) as error:
                problems.append(f"--eval-config {where}: {key}: {error}")
    return values


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{key} is no setting of a set; {hint}"


@cache
def _fields() -> Mapping[str, Flag]:
    return {flag.dest: flag for flag in flags_of(EvalDataset)}


def dataset_paths(file: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, what else the set says, defaults included) of every set with a path."""
    for row in _rows_of(file, []):
        if row.get("path"):
            yield row["path"], row
