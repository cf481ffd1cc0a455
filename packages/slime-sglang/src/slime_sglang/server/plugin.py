"""SGLang plugin ``slime``: verifies published weights inside the engine.

SGLang calls ``register`` in each of its processes before the engine starts (entry point group
``sglang.srt.plugins``). A hook whose target is gone ends the process: an engine that loads weights
without checking them must not start. ``slime_sglang.server.pausing`` shortens a wait,
``slime_sglang.server.flushing`` hears every scheduler. On a CPU it also installs
``slime_sglang.server.sampling``, ``slime_sglang.server.attention`` and
``slime_sglang.server.memory``.
"""

import importlib.metadata
import os
import pkgutil
from collections.abc import Callable
from typing import Any

from slime_sglang.server import attention, flushing, memory, pausing, sampling, verified

MARK = "slime_plugin"
"""Key of an engine's internal state that says which version of this plugin it runs."""
_SUPPORTED = "0.5.17"
_STATE = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"


def register() -> None:
    """Register every hook, or end the process with the reason."""
    hooks = {**verified.AROUND, **pausing.AROUND, **flushing.AROUND}
    replacements: dict[str, Callable[..., Any]] = {}
    afters: dict[str, Callable[..., Any]] = {_STATE: _marked}
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        hooks |= {**sampling.AROUND, **attention.AROUND, **memory.AROUND}
        afters |= sampling.AFTER
        replacements |= sampling.REPLACE
    _require([*hooks, *afters, *replacements])

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    for target, hook in afters.items():
        HookRegistry.register(target, hook, HookType.AFTER)
    for target, hook in replacements.items():
        HookRegistry.register(target, hook, HookType.REPLACE)


def _marked(answer: Any, *args: Any, **kw: Any) -> Any:
    """Say in /server_info that this engine verifies what it loads."""
    answer.internal_state[MARK] = importlib.metadata.version("slime-sglang")
    return answer


def _require(targets: list[str]) -> None:
    found = importlib.metadata.version("sglang")
    if found != _SUPPORTED:
        raise SystemExit(f"slime_sglang: made for SGLang {_SUPPORTED}, this is {found}")
    for target in targets:
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError) as error:
            raise SystemExit(f"slime_sglang: SGLang {found} has no {target}: {error}") from error
