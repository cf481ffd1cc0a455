"""Settings of the rollout engines and of the router in front of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slime_core.config.flags import Flag, derived, flag
from slime_core.config.table import flags_from_table

SERVER = "sglang"
"""Owner and prefix of the server's flags: --sglang-x sets x of ServerArgs."""
ROUTER = "router"
"""Owner and prefix of the router's flags: --router-x sets x of RouterArgs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLangConfig:
    """Engines and router. ``server`` and ``router`` hold only what differs from their defaults."""

    server: Mapping[str, Any] = derived(factory=dict[str, Any])
    """Fields of SGLang's ServerArgs, from --sglang-*."""
    router: Mapping[str, Any] = derived(factory=dict[str, Any])
    """Fields of the router's RouterArgs, from --router-*."""
    sglang_router_ip: str | None = None
    """Address of a router that already runs; by default the run starts one."""
    sglang_router_port: int | None = flag(default=None, at_least=1, at_most=65535)
    """Port of that router, or of the one to start."""
    sglang_router_request_timeout_secs: int = flag(default=14400, at_least=1)
    """Seconds the router lets a request take."""
    sglang_server_concurrency: int = flag(default=512, at_least=1)
    """Requests in flight per engine."""
    prefill_num_servers: int | None = flag(
        default=None, planned="engines both prefill and decode: leave it out"
    )
    """Engines that only prefill."""
    sglang_config: str | None = flag(
        default=None, planned="all engines are alike: give their settings as --sglang-* flags"
    )
    """YAML file of groups of engines."""


SLIME_SETS: Mapping[str, str] = MappingProxyType(
    {
        "model_path": "--hf-checkpoint",
        "config": "--custom-config-path",
        "trust_remote_code": "nothing: it is always off",
        "random_seed": "--rollout-seed",
        "enable_memory_saver": "--offload-rollout",
        "tp_size": "--rollout-num-gpus-per-engine",
        "host": "nothing: engines listen where the run reaches them",
        "device": "--device",
        "port": "nothing: a free port is found",
        "nnodes": "--rollout-num-gpus-per-engine",
        "node_rank": "--rollout-num-gpus-per-engine",
        "dist_init_addr": "nothing: a free port is found",
        "gpu_id_step": "nothing: engines are placed by the run",
        "base_gpu_id": "nothing: engines are placed by the run",
        "nccl_port": "nothing: a free port is found",
        "skip_server_warmup": "nothing: the run sets it",
        "enable_return_routed_experts": "nothing: the trainer routes its own tokens; "
        "--use-tis --tis-mode mask leaves out tokens on which engine and trainer disagree",
    }
)
"""ServerArgs that a run sets itself, and what to give instead."""

ROUTER_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "log_level": "warn",
        "balance_abs_threshold": 10,
        "balance_rel_threshold": 1.2,
        "disable_circuit_breaker": True,
        "disable_health_check": True,
    }
)
"""RouterArgs whose default slime changes: bursts of equal requests, engines watched by the run."""

_SHADOWED = ("config",)
"""ServerArgs whose flag slime has under the same name with another meaning."""


@cache
def server_flags() -> tuple[Flag, ...]:
    """Every flag of SGLang's server as --sglang-*, from the generated table."""
    flags = flags_from_table(_read("flags.json"), SERVER, prefix=SERVER)
    return tuple(
        replace(flag, spelling={**flag.spelling, "above": 0, "below": 1})
        if flag.dest == "mem_fraction_static"
        else flag
        for flag in flags
        if flag.dest not in _SHADOWED
    )


@cache
def router_flags() -> tuple[Flag, ...]:
    """Every flag of the router as --router-*, from the generated table."""
    return tuple(flags_from_table(_read("router_flags.json"), ROUTER, prefix=ROUTER))


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
