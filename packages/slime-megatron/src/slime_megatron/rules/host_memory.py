"""How much host memory the trainer's offloading takes, told before anything starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_convert.families import find
from slime_core.config.draft import Draft, Facts
from slime_core.config.rules.advantages import needs_critic

_GIB = 1024**3
_MOMENTS = 8
"""Bytes a parameter: Adam's two, in float32."""
_OFFLOAD_TRAIN = (
    "--offload-train keeps weights and optimizer state in host memory while engines generate",
    "--no-offload-train with a smaller --sglang-mem-fraction-static",
)
_OPTIMIZER = (
    "--optimizer-cpu-offload keeps optimizer state in host memory",
    "a smaller --optimizer-offload-fraction",
)
"""What takes host memory, and what takes less."""
_EXPERTS = ".experts."
"""In the names of routed experts' parameters; those of shared ones are like the rest."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many a model has; routed experts are divided over other ranks than the rest."""

    dense: int
    experts: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.experts


def num_parameters(hf_config: Mapping[str, Any]) -> Parameters:
    """Of the whole model that a config.json describes."""
    table = find(hf_config).parameters(hf_config)
    sizes = [(_EXPERTS in each.name, math.prod(each.shape)) for each in table.exported]
    experts = sum(size for is_expert, size in sizes if is_expert)
    return Parameters(sum(size for _, size in sizes) - experts, experts)


def offloaded_bytes(draft: Draft, parameters: Parameters) -> int:
    """What all ranks together keep in host memory of weights and optimizer state.

    A model has one copy of its weights for each data- and context-parallel rank, of its experts for
    each group of expert-parallel ones, and as many of its optimizer state unless the distributed
    optimizer divides it. Weights of 16 bits have float32 copies beside Adam's moments, and weights
    whose state is in host memory always do. ``--offload-train`` takes everything there,
    ``--optimizer-cpu-offload`` its share of the state.
    """
    values = draft.megatron.values
    ranks = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    tensor, stages = values["tensor_model_parallel_size"], values["pipeline_model_parallel_size"]
    spread = values["expert_model_parallel_size"] or 1
    spread *= values["expert_tensor_parallel_size"] or tensor
    half = draft["precision"] != "fp32"
    weights, state = (2, 4 + _MOMENTS) if half else (4, _MOMENTS)
    share = values["optimizer_offload_fraction"] if values["optimizer_cpu_offload"] else 0.0
    offloads = draft["offload_train"]
    weights = weights if offloads else 0
    state = share * (4 + _MOMENTS) + (1 - share) * (state if offloads else 0)
    needed = 0.0
    for number, parallel in ((parameters.dense, tensor), (parameters.experts, spread)):
        copies = max(1, ranks // (parallel * stages))
        states = 1 if values["use_distributed_optimizer"] else copies
        needed += number * (weights * copies + state * states)
    return round(needed)


def host_memory(draft: Draft, facts: Facts) -> None:
    """What the trainer holds fits into host memory beside everything else."""
    if needs_critic(draft):
        return  # counted together with the other one
    if problem := _shortage(draft, facts, ((draft, facts),)):
        draft.problem(problem)


def host_memory_of_both(actor: Draft, critic: Draft, facts: Facts, of_critic: Facts) -> str | None:
    """Why an actor and its critic do not fit into it together; None where they do."""
    return _shortage(actor, facts, ((actor, facts), (critic, of_critic)))


def _shortage(draft: Draft, facts: Facts, models: Sequence[tuple[Draft, Facts]]) -> str | None:
    offloads, always = draft["offload_train"], draft.megatron["optimizer_cpu_offload"]
    if not (offloads or always) or draft["device"] != "cuda":
        return None
    counted = [(own, num_parameters(of.hf_config)) for own, of in models if of.hf_config]
    given = draft["offload_host_memory_gib"]
    limit = facts.host_bytes if given is None else given * _GIB
    needed = sum(offloaded_bytes(own, number) for own, number in counted) / draft["actor_num_nodes"]
    if limit is None or needed <= limit:
        return None
    has = "this machine has left" if given is None else "--offload-host-memory-gib allows"
    less = "" if draft.megatron["use_distributed_optimizer"] else "--use-distributed-optimizer, "
    sizes = " and ".join(f"{number.total / 1e9:.2f}e9" for _, number in counted)
    of_both = " of actor and critic" if len(counted) > 1 else ""
    keeps, instead = _OFFLOAD_TRAIN if offloads else _OPTIMIZER
    return (
        f"{keeps}: {needed / _GIB:.1f} GiB a machine for {sizes} parameters{of_both}, and "
        f"{limit / _GIB:.1f} GiB is what {has}. Give {less}more model-parallel ranks on more "
        f"machines, or {instead}; where a machine shows less memory than it may use, "
        "--offload-host-memory-gib says how much it is"
    )
