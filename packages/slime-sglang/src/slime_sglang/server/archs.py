"""Which of SGLang's model files an engine need not import.

Every process of an engine imports all of ``sglang/srt/models``, two hundred files of which one or
two are used. SGLANG_DISABLED_MODEL_ARCHS names files to skip; the list is derived here by reading
their syntax trees, without importing any of them.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

_PACKAGE = "sglang.srt.models"
_FALLBACK = "transformers"
"""SGLang's file for architectures that it implements with Hugging Face's own code."""


def disabled_models(architectures: Sequence[str]) -> list[str]:
    """Model files that implement none of ``architectures``; empty when one is not found."""
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        return []
    files = _files(Path(found.submodule_search_locations[0]) / "srt" / "models")
    wanted = {name: _home(name, files) for name in architectures}
    if not wanted or None in wanted.values():
        return []
    kept = {module for module in wanted.values() if module is not None}
    return sorted(set(files) - _with_imports(kept, files) - {_FALLBACK})


def _files(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in root.glob("*.py") if path.stem != "__init__"}


def _home(architecture: str, files: dict[str, Path]) -> str | None:
    """The file that defines the class and lists it in ``EntryClass``."""
    for module, path in files.items():
        text = path.read_text()
        if f"class {architecture}(" in text and "EntryClass" in text:
            return module
    return None


def _with_imports(modules: set[str], files: dict[str, Path]) -> set[str]:
    kept, waiting = set(modules), list(modules)
    while waiting:
        for name in _imported(files[waiting.pop()]):
            if name in files and name not in kept:
                kept.add(name)
                waiting.append(name)
    return kept


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == _PACKAGE:
                yield from (alias.name for alias in node.names)
            elif node.module.startswith(_PACKAGE + "."):
                yield node.module.removeprefix(_PACKAGE + ".").split(".")[0]
