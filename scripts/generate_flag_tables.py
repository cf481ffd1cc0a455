"""Write the flag tables of slime-megatron and slime-sglang from the real parsers.

``uv run python scripts/generate_flag_tables.py`` writes ``packages/*/src/*/*flags.json``; with
``--check`` it compares instead and returns 1 when a table is out of step.
"""

import argparse
import enum
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEGATRON = ROOT / "packages/slime-megatron/src/slime_megatron/flags.json"
SERVER = ROOT / "packages/slime-sglang/src/slime_sglang/flags.json"
ROUTER = ROOT / "packages/slime-sglang/src/slime_sglang/router_flags.json"

ARITIES = {None: "one", "?": "optional", "*": "any", "+": "some", 0: "none"}
TYPES = {
    int: "int",
    float: "float",
    str: "str",
    None: "str",
    bool: "bool",
    json.loads: "json",
}
NAMED_TYPES = {
    "json_list_type": "json",
    "human_readable_int": "size",
    "enum_type_handler": "enum",
}


def megatron_parser() -> argparse.ArgumentParser:
    """Megatron-LM's parser, as megatron-core ships it."""
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    return parser


def server_parser() -> argparse.ArgumentParser:
    """The parser of sglang.launch_server."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    return parser


def router_parser() -> argparse.ArgumentParser:
    """The parser of the router, without the prefix it has next to a server's flags."""
    from sglang_router.router_args import RouterArgs

    parser = argparse.ArgumentParser(allow_abbrev=False)
    RouterArgs.add_cli_args(parser, use_router_prefix=False, exclude_host_port=True)
    return parser


_SENTENCE_END = re.compile(r"(?<!i\.e)(?<!e\.g)\. ")

TABLES: dict[Path, Callable[[], argparse.ArgumentParser]] = {
    MEGATRON: megatron_parser,
    SERVER: server_parser,
    ROUTER: router_parser,
}


def rows(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """One row per flag; actions that only say a flag is gone are left out."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or _is_gone(action):
            continue
        yield {key: value for key, value in _row(action).items() if value is not None}


def _is_gone(action: argparse.Action) -> bool:
    return type(action).__name__ == "DeprecatedAction"


def _row(action: argparse.Action) -> dict[str, Any]:
    switch = isinstance(action, argparse.BooleanOptionalAction)
    negatives = [n for n in action.option_strings if switch and n.startswith("--no-")]
    const = getattr(action, "const_value", action.const)
    arity = ARITIES.get(action.nargs, action.nargs)
    return {
        "names": [n for n in action.option_strings if n.startswith("--") and n not in negatives],
        "negatives": negatives or None,
        "dest": action.dest,
        "arity": None if arity == "one" else arity,
        "type": None if arity == "none" else _type_name(action),
        "choices": _choices(action),
        "const": None if const in (True, None) else _plain(const),
        "repeat": True if type(action).__name__ == "_AppendAction" else None,
        "default": None if action.default is argparse.SUPPRESS else _plain(action.default),
        "help": _first_sentence(action.help),
    }


def _type_name(action: argparse.Action) -> str | None:
    named = NAMED_TYPES.get(getattr(action.type, "__name__", ""))
    found = named or TYPES.get(action.type, "raw")
    return None if found == "str" else found


def _choices(action: argparse.Action) -> list[Any] | None:
    if action.choices is None or action.type is bool:
        return None
    choices = [_plain(choice) for choice in action.choices]
    return choices if all(isinstance(c, int) for c in choices) else sorted(choices, key=str)


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, enum.Enum) else value


def _first_sentence(text: str | None) -> str | None:
    if not text or text == argparse.SUPPRESS:
        return None
    words = " ".join(text.split()).replace("%%", "%")
    return _SENTENCE_END.split(words)[0].rstrip(".")


def render(parser: argparse.ArgumentParser) -> str:
    """The table as JSON, one flag a line."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows(parser))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> int:
    """Write or compare the tables named on the command line, by default all."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--check", action="store_true")
    command.add_argument("--only", choices=[path.stem + "@" + path.parent.name for path in TABLES])
    options = command.parse_args()
    stale: list[Path] = []
    for path, parser in TABLES.items():
        if options.only and options.only != path.stem + "@" + path.parent.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = render(parser())
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not options.check:
                path.write_text(text)
    for path in stale:
        verb = "is out of step with its parser" if options.check else "written"
        sys.stderr.write(f"{path.relative_to(ROOT)} {verb}\n")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
