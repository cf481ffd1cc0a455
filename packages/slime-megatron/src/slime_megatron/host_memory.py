"""How much host memory --offload-train takes, told before anything starts."""

import math
from collections.abc import Mapping
from typing import Any

from slime_convert.families import find
from slime_core.config.draft import Draft, Facts

_GIB = 1024**3
_MOMENTS = 8
"""Bytes a parameter: Adam's two, in float32."""


def num_parameters(hf_config: Mapping[str, Any]) -> int:
    """Of the whole model that a config.json describes."""
    table = find(hf_config).parameters(hf_config)
    return sum(math.prod(parameter.shape) for parameter in table.exported)


def offloaded_bytes(draft: Draft, parameters: int) -> int:
    """Weights and optimizer state of all ranks together.

    A model has one copy of its weights for each data- and context-parallel rank (of experts for
    each group of expert-parallel ones), and as many of its optimizer state unless the distributed
    optimizer divides it. Weights of 16 bits have float32 copies beside Adam's moments.
    """
    values = draft.megatron.values
    ranks = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    parallel = values["tensor_model_parallel_size"] * values["pipeline_model_parallel_size"]
    copies = max(1, ranks // (parallel * (values["expert_model_parallel_size"] or 1)))
    half = draft["precision"] != "fp32"
    weights, state = (2, 4 + _MOMENTS) if half else (4, _MOMENTS)
    states = 1 if values["use_distributed_optimizer"] else copies
    return parameters * (weights * copies + state * states)


def host_memory(draft: Draft, facts: Facts) -> None:
    """What the trainer holds fits into host memory beside everything else."""
    if not draft["offload_train"] or draft["device"] != "cuda" or not facts.hf_config:
        return
    given = draft["offload_host_memory_gib"]
    limit = facts.host_bytes if given is None else given * _GIB
    parameters = num_parameters(facts.hf_config)
    needed = offloaded_bytes(draft, parameters) / draft["actor_num_nodes"]
    if limit is None or needed <= limit:
        return
    has = "this machine has left" if given is None else "--offload-host-memory-gib allows"
    less = "" if draft.megatron["use_distributed_optimizer"] else "--use-distributed-optimizer, "
    draft.problem(
        f"--offload-train keeps weights and optimizer state in host memory while engines generate: "
        f"{needed / _GIB:.1f} GiB a machine for {parameters / 1e9:.2f}e9 parameters, and "
        f"{limit / _GIB:.1f} GiB is what {has}. Give {less}more model-parallel ranks on more "
        "machines, or --no-offload-train with a smaller --sglang-mem-fraction-static; where a "
        "machine shows less memory than it may use, --offload-host-memory-gib says how much it is"
    )
