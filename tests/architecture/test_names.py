"""Names that files outside the packages import of them: also those that run on GPUs only."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from slime_testing.workspace import PACKAGES, ROOT, module_name, modules, tracked_files


@cache
def sources() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in modules(package)}


@cache
def names_in(module: str) -> frozenset[str]:
    """What a module binds outside its functions and classes."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(sources()[module].read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.TypeAlias):
            found.add(node.name.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found.update(alias.asname or alias.name for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def missing_from(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in sources():
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module not in sources() and alias.name not in names_in(node.module):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {module}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}"


def test_every_name_that_is_imported_from_a_package_is_there():
    outside = [
        path
        for path in tracked_files()
        if path.suffix == ".py" and not {"packages", "apps"} & set(path.relative_to(ROOT).parts[:1])
    ]
    assert len(outside) > 200
    assert [line for path in outside for line in missing_from(path)] == []
