"""Write docs/reference/flags.md from the configuration sections.

``uv run python scripts/generate_flag_docs.py`` writes it; a test compares.
"""

import inspect
from pathlib import Path

from slime_core.config.arguments import range_of
from slime_core.config.flags import Flag, flags_of
from slime_train.run_config import SECTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/flags.md"

INTRODUCTION = """\
# Flags of slime-train

Written by `scripts/generate_flag_docs.py` from the sections of the configuration.

Besides these, every flag of Megatron's parser is taken (`slime-train --help-megatron`;
[what does nothing here](megatron.md)), every flag of SGLang's server with the prefix `--sglang-`
(`--help-sglang`) and every flag of its router with the prefix `--router-` (`--help-router`).
`slime-train --help kl coef` finds, in all of them, the flags whose name or help says both words.
`slime-train ... --dump-config` prints every value of a run and where it comes from. Where no
default is shown, the value is derived or off.

Flags are resolved in this order: defaults, the model's `config.json`, the command line, the file of
`--custom-config-path`; what is still open is derived.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        title = (inspect.getdoc(section) or "").split("\n", 1)[0]
        flags = flags_of(section, helps=True)
        parts.append(
            f"## {name}\n\n{title}\n\n| flag | value | default | meaning |\n|---|---|---|---|"
        )
        parts[-1] += "".join("\n" + _row(flag) for flag in flags)
        parts[-1] += "\n"
    return "\n".join(parts)


def _row(flag: Flag) -> str:
    names = ", ".join(f"`{name}`" for name in (*flag.names, *flag.negatives))
    meaning = flag.help + _planned(flag)
    return f"| {names} | {_value(flag)} | {_default(flag)} | {meaning} |".replace("\\|", "or")


def _value(flag: Flag) -> str:
    if flag.arity == "none":
        return ""
    if flag.choices:
        return ", ".join(f"`{choice}`" for choice in flag.choices)
    words = [flag.type_name, "..." if flag.arity == "some" else "", range_of(flag)]
    return " ".join(filter(None, words))


def _default(flag: Flag) -> str:
    if flag.arity == "none" or flag.default in (None, (), [], {}, "", 0):
        return "" if flag.default != 0 or flag.arity == "none" else "`0`"
    default = flag.default
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def _planned(flag: Flag) -> str:
    planned = flag.spelling.get("planned")
    if planned is None:
        return ""
    if isinstance(planned, str):
        return f" *Not there yet: {planned}.*"
    values = "; ".join(f"{value}: {reason}" for value, reason in planned.items())
    return f" *Not there yet: {values}.*"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
