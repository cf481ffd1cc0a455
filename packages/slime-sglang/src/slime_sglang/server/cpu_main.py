"""SGLang's launcher for a machine without a GPU: ``python -m slime_sglang.server.cpu_main ARGS``.

An engine is three processes, and each imports SGLang for 15 seconds of processor time. Here the
first one imports it and the other two are forked from it, which CUDA would not survive and a CPU
engine does: at that point the process has one thread and has computed nothing. Packages that
only serve GPUs, training or data science, and that SGLang and transformers treat as optional, stay
out.
"""

import gc
import importlib
import multiprocessing
import os
import runpy
import sys
from typing import Any

from slime_core.processes.imports import lean

_SUPPORTED = "0.5.17"
_OPTIONAL = ("flashinfer", "flash_attn", "megatron", "scipy", "sklearn")


def _fork_from_now_on(*_args: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)


def main() -> None:
    """Import what the processes of the engine share, then run SGLang's own entry point."""
    for name in _OPTIONAL:
        sys.modules[name] = None  # type: ignore[assignment]
    gc.disable()
    with lean():
        for name in ("sglang.srt.entrypoints.http_server", "sglang.srt.models.registry"):
            importlib.import_module(name)
    from sglang.srt.entrypoints import engine
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    gc.freeze()  # a million objects that stay: SGLang collects garbage at every cache flush
    gc.enable()

    if not hasattr(engine, "_set_envs_and_config"):
        raise SystemExit(f"slime_sglang: made for SGLang {_SUPPORTED}; this one starts differently")
    if os.environ.get("SLIME_SGLANG_FORK", "1") == "1":
        target = "sglang.srt.entrypoints.engine._set_envs_and_config"
        HookRegistry.register(target, _fork_from_now_on, HookType.AFTER)
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
