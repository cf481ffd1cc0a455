"""Start one stock SGLang server as a supervised process and wait until it generates."""

import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from slime_core.errors import EngineError
from slime_core.processes.this_machine import visible_device
from slime_core.residency import Holding

from slime_sglang.client import EngineClient, MemoryTag
from slime_sglang.processes.command_line import to_words
from slime_sglang.processes.ports import PortLease
from slime_sglang.processes.supervise import (
    Command,
    Running,
    Supervised,
    check,
    log_tail,
    wait_until,
)
from slime_sglang.server.archs import disabled_models

logger = logging.getLogger(__name__)

_PLUGIN_GROUP = "sglang.srt.plugins"
_PLUGIN = "slime"
_CPU_TOKENS = 65536
"""Tokens of KV cache of an engine on a CPU, unless --sglang-max-total-tokens says otherwise."""
_PRIVATE_ENV = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK",
    "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables that describe the caller's own process group."""
_LENT: Mapping[Holding, frozenset[MemoryTag]] = MappingProxyType(
    {
        "everything": frozenset(),
        "weights": frozenset({"kv_cache", "cuda_graph"}),
        "nothing": frozenset({"kv_cache", "cuda_graph", "weights"}),
    }
)
"""What an engine that holds so much has released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine: what it serves, on what, and where it writes its log."""

    name: str
    model_path: Path
    device: Literal["cpu", "cuda"]
    log_dir: Path
    server: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """ServerArgs given by the user; they win over the defaults, not over what a run must set."""
    gpus: tuple[int, ...] = ()
    """Indices on this machine, one per tensor-parallel rank; empty on a CPU."""
    lender: int | None = None
    """Another GPU of this machine whose memory it reads when it is given weights."""
    num_threads: int = 1
    """Threads of an engine on a CPU."""
    seed: int = 0
    memory_saver: bool = False
    """Let the engine's memory be released and resumed; on a CPU it always can be."""
    host: str = "127.0.0.1"
    machine: int = 0
    """Which one of the run's."""


def launch(spec: EngineSpec) -> tuple[str, Supervised]:
    """Start a server on this machine; its address and its process."""
    with ExitStack() as unless_started:
        ports = unless_started.enter_context(PortLease(2, spec.host))
        port, collective_port = ports.ports
        command = Command(
            name=f"engine {spec.name}",
            argv=command_line(spec, port=port, collective_port=collective_port),
            log_path=spec.log_dir / f"{spec.name}.log",
            env=environment(spec, os.environ),
        )
        process = Supervised(command, ports)
        unless_started.pop_all()
    return f"http://{spec.host}:{port}", process


Launch = Callable[[EngineSpec], tuple[str, Running]]
"""Starts a server, here or elsewhere; its address and its process."""


class Engine:
    """A running SGLang server; owned by the process that started it."""

    def __init__(self, spec: EngineSpec, launch: Launch = launch) -> None:
        self.spec = spec
        self.url, self.process = launch(spec)
        self.client = EngineClient(self.url)
        self._lent: frozenset[MemoryTag] = frozenset()

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel size: processes that hold a shard of the weights."""
        return max(1, len(self.spec.gpus))

    def wait_ready(self, deadline_s: float) -> None:
        """Return when it has generated a token; ``EngineError`` with its log's end otherwise."""
        wait_until(self.process, self.client.is_up, deadline_s)
        probe = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        try:
            self.client.generate(probe, timeout_s=deadline_s)
        except EngineError as error:
            check(self.process, "answering its first request")
            raise EngineError(f"{error}; log:\n{log_tail(self.process.log_path)}") from error

    def hold(self, what: Holding) -> None:
        """Keep so much in memory; it must be idle, and weights come back without their content."""
        wanted = _LENT[what]
        if more := wanted - self._lent:
            self.client.flush_cache()  # answers once nothing runs
            self.client.release_memory(sorted(more))
        if back := self._lent - wanted:
            self.client.resume_memory(sorted(back))
        self._lent = wanted

    def check_alive(self) -> None:
        """Raise ``EngineError`` with the end of its log if it has ended."""
        check(self.process)

    def kill(self) -> None:
        """End it at once, also when it hangs."""
        self.client.close()
        self.process.kill()

    def stop(self) -> None:
        """End it and everything it started."""
        self.client.close()
        self.process.stop()


def start_engine(spec: EngineSpec, *, deadline_s: float = 600.0) -> Engine:
    """A server that answers; whatever was started is stopped again when it does not."""
    engine = Engine(spec)
    try:
        engine.wait_ready(deadline_s)
    except BaseException:
        engine.stop()
        raise
    return engine


def plugin_paths() -> list[str]:
    """What SGLang's PYTHONPATH needs to find the plugin that verifies weights.

    Nothing when slime-sglang is installed; run from its sources, the entry point is declared by
    the metadata beside this file.
    """
    if importlib.metadata.entry_points(group=_PLUGIN_GROUP, name=_PLUGIN):
        return []
    return [str(Path(__file__).with_name("source_tree")), str(Path(__file__).parents[2])]


def command_line(spec: EngineSpec, *, port: int, collective_port: int) -> list[str]:
    """The words of the server's command line: defaults, the user's values, then the run's."""
    ours = {
        "model_path": str(spec.model_path),
        "device": spec.device,
        "host": spec.host,
        "port": port,
        "nccl_port": collective_port,
        "tp_size": max(1, len(spec.gpus)),
        "skip_server_warmup": True,
        "random_seed": spec.seed,
        "enable_memory_saver": spec.memory_saver and spec.device == "cuda",
    }
    values = {"log_level_http": "warning", **_device_defaults(spec), **spec.server, **ours}
    module = "slime_sglang.server.cpu_main" if spec.device == "cpu" else "sglang.launch_server"
    return [sys.executable, "-m", module, *to_words(values, "flags")]


def _device_defaults(spec: EngineSpec) -> dict[str, Any]:
    if spec.device == "cuda":
        return {}
    return {
        "dtype": "float32",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "sleep_on_idle": True,  # not ask for requests as fast as a core can: others need it
        "mem_fraction_static": 0.1,
        "max_total_tokens": _CPU_TOKENS,
    }


def environment(spec: EngineSpec, base: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without its process group, plus what an engine needs."""
    env = {name: value for name, value in base.items() if name not in _PRIVATE_ENV}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["SGLANG_PLUGINS"] = _PLUGIN
    env["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] = "0"
    env["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] = "0"
    if spec.model_path.is_dir():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        env["SGLANG_DISABLED_MODEL_ARCHS"] = ",".join(disabled_models(_architectures(spec)))
    paths = [*plugin_paths(), *filter(None, [env.get("PYTHONPATH")])]
    if spec.device == "cpu":
        paths.insert(0, str(Path(__file__).with_name("cpu_stub")))
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    if spec.device == "cuda":
        env["CUDA_VISIBLE_DEVICES"] = ",".join(_visible(spec, base))
        if spec.memory_saver:
            env |= _memory_saver(env)
        return env
    env |= {
        "SGLANG_USE_CPU_ENGINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(spec.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not spec.server.get("enable_torch_compile"):
        env["TORCHDYNAMO_DISABLE"] = "1"  # else the sampler compiles C++ on its first batch
    return env


def _memory_saver(env: Mapping[str, str]) -> dict[str, str]:
    """Where the library that SGLang preloads finds torch's CUDA runtime.

    Captured graphs stay in memory (SGLANG_MEMORY_SAVER_CUDA_GRAPH): Megatron-Core, where it is
    installed and imported, sets the library to a mode that cannot release them.
    """
    packages = importlib.util.find_spec("nvidia")
    roots = list(packages.submodule_search_locations or ()) if packages is not None else []
    found = {str(path.parent) for root in roots for path in Path(root).glob("*/lib/libcudart.so.*")}
    paths = [*filter(None, [env.get("LD_LIBRARY_PATH")]), *sorted(found)]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths)}


def _visible(spec: EngineSpec, base: Mapping[str, str]) -> list[str]:
    """Device names of its GPUs, which count within the caller's own CUDA_VISIBLE_DEVICES.

    One whose memory it only reads comes last, behind those that its ranks compute on.
    """
    gpus = [*spec.gpus]
    if spec.lender is not None and spec.lender not in gpus:
        gpus.append(spec.lender)
    return [visible_device(gpu, base) for gpu in gpus]


def _architectures(spec: EngineSpec) -> list[str]:
    path = spec.model_path / "config.json"
    try:
        names = json.loads(path.read_text()).get("architectures")
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}") from error
    return list(names or [])
