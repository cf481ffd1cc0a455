"""Which engines a run has, where, and what each of them is started with."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from slime_core.config.cluster import ClusterConfig
from slime_core.config.machines import Machine

from slime_sglang.config import SGLangConfig
from slime_sglang.server.launch import EngineSpec

_SMALL_HIDDEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """Engines that are all alike, and their router."""

    model_path: Path
    device: Literal["cpu", "cuda"]
    log_dir: Path
    sglang: SGLangConfig
    num_engines: int = 1
    gpus: Sequence[int] = ()
    """All engines' GPUs in order, each counted on its machine; empty on a CPU; divided evenly."""
    machines: tuple[int, ...] = ()
    """Where each engine is, by the number of the machine; empty where all are on this one."""
    lender: int | None = None
    """The GPU that weights are handed over on, where engines share the trainer's."""
    seed: int = 0
    memory_saver: bool = False
    ready_timeout_s: float = 900.0
    external: tuple[str, ...] = ()
    """Addresses of engines that already run; none are started then."""
    prefix: str = ""
    """Of the names of engines and router, where a run has others besides."""
    fixed_weights: bool = False
    """Whether they keep the weights they start with; otherwise they serve when given others."""

    @classmethod
    def resolve(
        cls,
        cluster: ClusterConfig,
        sglang: SGLangConfig,
        machines: Sequence[Machine],
        *,
        model_path: Path,
        log_dir: Path,
        seed: int,
    ) -> "FleetSpec":
        """The engines of ``machines``; those of a single one are started here."""
        assert cluster.device != "auto", "resolved with the command line"
        engines = [(at, gpus) for at, machine in enumerate(machines) for gpus in machine.engines]
        gpus = tuple(gpu for _, each in engines for gpu in each)
        return cls(
            model_path=model_path,
            device=cluster.device,
            log_dir=log_dir,
            sglang=sglang,
            num_engines=len(engines),
            gpus=gpus,
            machines=tuple(at for at, _ in engines) if len(machines) > 1 else (),
            lender=0 if cluster.colocate and gpus else None,
            seed=seed,
            memory_saver=bool(cluster.offload_rollout),
        )

    def of_teacher(self, model_path: Path) -> "FleetSpec":
        """One engine for another model, behind a router of its own, on the first one's machine."""
        own = replace(self.sglang, sglang_router_ip=None, sglang_router_port=None)
        return replace(
            self,
            model_path=model_path,
            log_dir=self.log_dir / "teacher",
            sglang=own,
            num_engines=1,
            machines=self.machines[:1],
            external=(),
            prefix="teacher_",
            fixed_weights=True,
        )

    def engine(self, index: int) -> EngineSpec:
        """The specification of one of them."""
        each = len(self.gpus) // self.num_engines
        return EngineSpec(
            name=f"{self.prefix}engine_{index}",
            model_path=self.model_path,
            device=self.device,
            log_dir=self.log_dir,
            server=self.sglang.server,
            gpus=tuple(self.gpus[index * each : (index + 1) * each]),
            lender=self.lender,
            num_threads=self._num_threads(),
            seed=self.seed + index,
            memory_saver=self.memory_saver,
            machine=self.machines[index] if self.machines else 0,
        )

    def _num_threads(self) -> int:
        """The engines' share of the cores; one for a model too small to gain by more."""
        try:
            values = json.loads((self.model_path / "config.json").read_text())
        except (OSError, ValueError):
            values = {}
        if values.get("hidden_size", 0) <= _SMALL_HIDDEN:
            return 1
        beside = max(Counter(self.machines).values(), default=self.num_engines)
        return max(1, len(os.sched_getaffinity(0)) // beside)
