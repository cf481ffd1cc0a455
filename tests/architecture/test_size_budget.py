"""Files fit in a head and functions on a screen."""

import ast
from pathlib import Path

import pytest
from slime_testing.workspace import PACKAGES, ROOT, modules

MODULE_LINES = {
    "slime_core": 400,
    "slime_convert": 400,
    "slime_rewards": 400,
    "slime_sglang": 500,
    "slime_megatron": 500,
    "slime_train": 500,
}
FUNCTION_LINES = 60
APP_LINES = 3_000


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def long_functions(source: str, limit: int) -> list[str]:
    """Name and length of every function of more than ``limit`` lines."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > limit]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_are_short(package: str):
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in modules(package)
        if (lines := num_lines(path)) > MODULE_LINES[package]
    }
    assert not too_long


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_fit_on_a_screen(package: str):
    too_long = {
        str(path.relative_to(ROOT)): names
        for path in modules(package)
        if (names := long_functions(path.read_text(), FUNCTION_LINES))
    }
    assert not too_long


def test_what_drives_a_run_stays_small():
    """All of the app but the quickstart, which only calls it."""
    parts = [path for path in modules("slime_train") if "quickstart" not in path.parts]
    assert sum(map(num_lines, parts)) <= APP_LINES


def test_a_long_function_is_named():
    source = "def short():\n    pass\n\n\ndef long():\n    a = 1\n    b = 2\n    return a + b\n"
    assert long_functions(source, 3) == ["long: 4 lines"]
