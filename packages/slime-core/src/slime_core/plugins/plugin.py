"""Load a user function: ``package.module.name``, ``path/to/file.py[:name]``, or an entry point."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from slime_core.errors import PluginError
from slime_core.plugins import upstream

ENTRY_POINT_GROUP = "slime.plugins"
_FILE_PREFIX = "slime_plugin_"
"""How the module of a file that is loaded by its path is called."""


def load_plugin(spec: str, *, expects: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Resolve ``spec`` and check it accepts the positional parameters of ``expects``.

    Args:
        spec: ``a.b.c`` (dotted path), ``dir/file.py:c`` (file), ``dir/c.py`` (the function ``c``
            in it, or the only public one defined there), or ``name`` (entry point in the group
            ``slime.plugins``).
        expects: A function with the signature the caller will use; only its positional
            parameter count is compared.

    Raises:
        PluginError: with every location tried and what was found there.
    """
    spec = upstream.renamed(spec)
    target = _resolve(spec)
    if not callable(target):
        raise PluginError(f"plugin {spec!r} is of type {type(target).__name__}, not a function")
    if expects is not None:
        _check_positional(spec, target, expects)
    return target


def _resolve(spec: str) -> Any:
    if ".py:" in spec:
        path, _, name = spec.rpartition(":")
        return _attribute(_module_from_file(Path(path)), name, spec)
    if spec.endswith(".py"):
        return _only_function(_module_from_file(Path(spec)), Path(spec))
    if "." in spec:
        module, _, name = spec.rpartition(".")
        return _attribute(_module(module, spec), name, spec)
    found = entry_points(group=ENTRY_POINT_GROUP)
    if spec in found.names:
        return found[spec].load()
    raise PluginError(
        f"plugin {spec!r} is neither a dotted path, nor file.py:name, nor one of the "
        f"{ENTRY_POINT_GROUP!r} entry points {sorted(found.names)}"
    )


def _module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        hint = f"(is it on PYTHONPATH? {name.replace('.', '/')}.py:name works without)"
        if upstream.is_upstream(name):
            hint = f"of upstream's: {upstream.instead_of(name)}"
        elif found := upstream.advice(error):
            hint = f"of upstream's: {found}"
        raise PluginError(f"plugin {spec!r}: cannot import {missing!r} {hint}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {spec!r}: importing {name} fails: {_told(error)}") from error


def _module_from_file(path: Path) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    name = f"{_FILE_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        module_spec = importlib.util.spec_from_file_location(name, path)
        if module_spec is None or module_spec.loader is None:
            raise PluginError(f"plugin file {path} is not a Python module")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # so that pickling by reference works inside one process
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            known = upstream.advice(error) if isinstance(error, ModuleNotFoundError) else None
            why = known or _told(error)
            raise PluginError(f"plugin file {path} cannot be imported: {why}") from error
    return sys.modules[name]


def _only_function(module: Any, path: Path) -> Any:
    """The function named like the file, or the only public function or class it defines."""
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    }
    if path.stem in own:
        return own[path.stem]
    if len(own) == 1:
        return next(iter(own.values()))
    raise PluginError(
        f"plugin file {path} defines {sorted(own) or 'no public function'}: "
        f"say which one as {path}:name"
    )


def _attribute(module: Any, name: str, spec: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        in_file = module.__name__.startswith(_FILE_PREFIX)
        where = Path(module.__file__).name if in_file else module.__name__
        raise PluginError(f"plugin {spec!r}: {where} has {public}, no {name!r}{meant}") from None


def _told(error: Exception | SystemExit) -> str:
    """An error in one line; of what Python cannot read, the line where it stopped."""
    if isinstance(error, SystemExit):
        return (
            f"it ends the process with sys.exit({error.code!r}); put what a script does, such as "
            "reading a command line, under `if __name__ == '__main__':`"
        )
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    return repr(error)


def _check_positional(spec: str, target: Callable[..., Any], expects: Callable[..., Any]) -> None:
    wanted = [
        p.name
        for p in inspect.signature(expects).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    try:
        inspect.signature(target).bind(*wanted)
    except TypeError as error:
        raise PluginError(
            f"plugin {spec!r} must be callable as f({', '.join(wanted)}), "
            f"but is {inspect.signature(target)}: {error}"
        ) from error
