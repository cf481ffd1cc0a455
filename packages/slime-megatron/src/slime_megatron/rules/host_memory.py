"""How much host memory the trainer's offloading takes, told before anything starts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_convert.families import find
from slime_core.config.draft import Draft, Facts
from slime_core.config.rules.advantages import needs_critic

_GIB = 1024**3
_SINGLE, _MOMENTS = 4, 8
"""Bytes a parameter: in float32, and of Adam's two moments."""
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
    weights = _bytes_of_weight(draft)
    state = _MOMENTS if weights == _SINGLE else _SINGLE + _MOMENTS
    share = values["optimizer_offload_fraction"] if values["optimizer_cpu_offload"] else 0.0
    offloads = draft["offload_train"]
    weights = weights if offloads else 0
    state = share * (_SINGLE + _MOMENTS) + (1 - share) * (state if offloads else 0)
    needed = 0.0
    for number, copies in _copies(draft, parameters):
        states = 1 if values["use_distributed_optimizer"] else copies
        needed += number * (weights * copies + state * states)
    return round(needed)


def kept_policies(draft: Draft) -> tuple[str, ...]:
    """Whose weights an actor keeps in host memory, as ``iteration.objective.Objective`` has it."""
    if draft["loss_type"] == "dpo_loss":
        return ("the reference",)
    if draft["loss_type"] not in ("policy_loss", "custom_loss"):
        return ()
    wanted = {
        "the reference": draft["use_kl_loss"] or draft["kl_coef"],
        "the teacher": draft["use_opd"] and draft["opd_type"] == "megatron",
        "the old actor": draft["keep_old_actor"],
    }
    return tuple(name for name, needed in wanted.items() if needed)


def kept_bytes(draft: Draft, parameters: Parameters) -> int:
    """What all ranks together keep of other policies' weights.

    Of each as many copies as of the actor's, whose own are there as well while another's are in its
    place.
    """
    policies = len(kept_policies(draft))
    times = policies + 1 if policies else 0
    copied = sum(number * copies for number, copies in _copies(draft, parameters))
    return copied * _bytes_of_weight(draft) * times


def _copies(draft: Draft, parameters: Parameters) -> Iterator[tuple[int, int]]:
    """(how many parameters, how often all ranks together have them)."""
    values = draft.megatron.values
    ranks = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    tensor, stages = values["tensor_model_parallel_size"], values["pipeline_model_parallel_size"]
    spread = values["expert_model_parallel_size"] or 1
    spread *= values["expert_tensor_parallel_size"] or tensor
    for number, parallel in ((parameters.dense, tensor), (parameters.experts, spread)):
        yield number, max(1, ranks // (parallel * stages))


def _bytes_of_weight(draft: Draft) -> int:
    return _SINGLE if draft["precision"] == "fp32" else _SINGLE // 2


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
    whole = sum(offloaded_bytes(own, number) for own, number in counted)
    whole += sum(kept_bytes(own, number) for own, number in counted[:1])  # a critic has no others
    needed = whole / draft["actor_num_nodes"]
    if limit is None or needed <= limit:
        return None
    has = "this machine has left" if given is None else "--offload-host-memory-gib allows"
    less = "" if draft.megatron["use_distributed_optimizer"] else "--use-distributed-optimizer, "
    sizes = " and ".join(f"{number.total / 1e9:.2f}e9" for _, number in counted)
    of_both = " of actor and critic" if len(counted) > 1 else ""
    keeps, instead = _OFFLOAD_TRAIN if offloads else _OPTIMIZER
    beside = (
        f", beside the weights of {' and '.join(kept)}" if (kept := kept_policies(draft)) else ""
    )
    return (
        f"{keeps}{beside}: {needed / _GIB:.1f} GiB a machine for {sizes} parameters{of_both}, and "
        f"{limit / _GIB:.1f} GiB is what {has}. Give {less}more model-parallel ranks on more "
        f"machines, or {instead}; where a machine shows less memory than it may use, "
        "--offload-host-memory-gib says how much it is"
    )
