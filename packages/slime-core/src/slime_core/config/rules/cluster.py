"""Devices, trainer ranks, engines."""

import re
from dataclasses import fields

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.cluster import ClusterConfig
from slime_core.config.draft import Draft, Facts, spelled
from slime_core.config.machines import machines
from slime_core.errors import ConfigError

_ADDRESS = re.compile(r"(http://)?[\w.\-]+:\d+|(http://)?\[[0-9a-fA-F:]+\]:\d+")
_JOIN = (
    "set RAY_ADDRESS to a Ray cluster that spans the machines (`ray start --head` on one, "
    "`ray start --address ...` on the others)"
)


def assumed_machine(draft: Draft, facts: Facts) -> None:
    """Only what starts nothing can be about a machine that is not this one."""
    count = draft["assume_gpus"]
    if count is not None and not draft["dump_config"]:
        draft.problem(
            f"--assume-gpus {count} is for --dump-config: a run uses the GPUs that there are; "
            "add --dump-config, or leave it out"
        )
    elif count is not None:
        draft.notice(f"--assume-gpus {count}: resolved as on such a machine, not as on this one")


def device(draft: Draft, facts: Facts) -> None:
    """Auto is CUDA where a device is visible."""
    if draft["device"] == "auto":
        draft.derive("device", "cuda" if facts.num_gpus else "cpu", "visible devices")
    elif draft["device"] == "cuda" and not facts.num_gpus and draft["actor_num_nodes"] == 1:
        where = ", and the run stays on this machine" if facts.in_cluster else ""
        draft.problem(
            f"--device cuda: no NVIDIA device is visible (/dev/nvidia*, CUDA_VISIBLE_DEVICES)"
            f"{where}; give --device cpu, or leave it out"
        )


def usable_gpus(draft: Draft, facts: Facts) -> int:
    """Visible devices, bounded by --num-gpus-per-node."""
    return min(facts.num_gpus, draft["num_gpus_per_node"])


def single_gpu(draft: Draft, facts: Facts) -> None:
    """One device is shared; there is no other way to use it."""
    if draft["actor_num_nodes"] > 1:
        return
    if draft["device"] == "cuda" and usable_gpus(draft, facts) == 1:
        both = starts_engines(draft) and trainer_needed(draft)
        draft.derive("colocate", both, "a single GPU")


def trainer_ranks(draft: Draft, facts: Facts) -> None:
    """One process on a CPU; on one machine the devices that engines leave, unless given."""
    if draft.given("actor_num_gpus_per_node"):
        return
    if draft["device"] == "cpu":
        draft.derive("actor_num_gpus_per_node", 1, "one process on a CPU")
    elif draft["actor_num_nodes"] == 1:
        left = usable_gpus(draft, facts)
        if starts_engines(draft) and not draft["colocate"]:
            engines = (draft["rollout_num_engines"] or 1) * draft["rollout_num_gpus_per_engine"]
            left -= draft["rollout_num_gpus"] or engines
        ranks = max(1, min(left, draft["actor_num_gpus_per_node"]))
        draft.derive("actor_num_gpus_per_node", ranks, "visible devices")


def residency(draft: Draft, facts: Facts) -> None:
    """Who shares GPUs makes room for the other; on a CPU only who is asked to."""
    both = starts_engines(draft) and trainer_needed(draft)
    shared = draft["colocate"] and draft["device"] == "cuda"
    asked = [name for name in ("offload_train", "offload_rollout") if draft[name]]
    asked += ["offload"] * bool(draft["offload"])
    if asked and draft["device"] == "cuda" and not shared:
        draft.problem(
            f"{spelled(*asked)} without --colocate: trainer and engines have GPUs of their own, "
            "and nobody needs what would be freed; leave it out, or share the GPUs with --colocate"
        )
    for name in ("offload_train", "offload_rollout"):
        wanted = draft["offload"] or shared if draft[name] is None else draft[name]
        rule = "trainer and engines share GPUs" if shared else "off unless given"
        draft.derive(name, bool(wanted and both), rule)


def engines_needed(draft: Draft) -> bool:
    """Whether this run generates at all."""
    return not draft["debug_train_only"] and draft["loss_type"] not in OFFLINE_LOSSES


def starts_engines(draft: Draft) -> bool:
    """Whether it starts engines to do so."""
    return engines_needed(draft) and not draft["rollout_external_engine_addrs"]


def external_engines(draft: Draft, facts: Facts) -> None:
    """Engines that somebody else runs are neither placed nor started again."""
    addresses = draft["rollout_external_engine_addrs"]
    if not addresses:
        return
    flag = "--rollout-external-engine-addrs"
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            draft.problem(f"{flag} {address}: give addresses as host:port")
    for name in ("rollout_num_gpus", "rollout_num_engines", "colocate", "offload_rollout"):
        if draft.given(name) and draft[name]:
            given = "--" + name.replace("_", "-")
            draft.problem(f"{given} is about engines that the run starts, not those of {flag}")
    if draft["use_fault_tolerance"]:
        draft.problem(
            f"--use-fault-tolerance starts lost engines again, and those of {flag} are somebody "
            "else's: leave one of them out"
        )
    if not engines_needed(draft):
        draft.problem(f"{flag}: this run generates nothing, leave it out")


def trainer_needed(draft: Draft) -> bool:
    """Whether this run trains at all."""
    return not draft["debug_rollout_only"]


def engines(draft: Draft, facts: Facts) -> None:
    """rollout_num_gpus = rollout_num_engines * rollout_num_gpus_per_engine."""
    per_engine = draft["rollout_num_gpus_per_engine"]
    gpus, count = draft["rollout_num_gpus"], draft["rollout_num_engines"]
    if not engines_needed(draft):
        draft.derive("rollout_num_gpus", 0, "no generation")
        draft.derive("rollout_num_engines", 0, "no generation")
        return
    if addresses := draft["rollout_external_engine_addrs"]:
        draft.derive("rollout_num_gpus", 0, "engines that already run")
        draft.derive("rollout_num_engines", len(addresses), "engines that already run")
        return
    if gpus == 0:
        draft.problem(
            "--rollout-num-gpus 0 leaves no engine: give at least --rollout-num-gpus-per-engine, "
            "or engines that already run as --rollout-external-engine-addrs"
        )
        return
    if gpus is None and draft["colocate"] and draft["device"] == "cuda" and count is None:
        gpus = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    if gpus is None:
        gpus = (count or 1) * per_engine
    if gpus % per_engine:
        draft.problem(
            f"--rollout-num-gpus {gpus} is not a multiple of "
            f"--rollout-num-gpus-per-engine {per_engine}"
        )
    elif count is not None and count * per_engine != gpus:
        draft.problem(
            f"--rollout-num-gpus {gpus} gives {gpus // per_engine} engines of "
            f"--rollout-num-gpus-per-engine {per_engine}, not --rollout-num-engines {count}: "
            "leave one of them out"
        )
    draft.derive("rollout_num_gpus", gpus, "engines times their GPUs")
    draft.derive("rollout_num_engines", max(1, gpus // per_engine), "GPUs per engine")


def enough_devices(draft: Draft, facts: Facts) -> None:
    """Trainer and engines fit on this machine, or on as many as they are divided over."""
    if draft["device"] == "cpu":
        return
    trainer, rollout = draft["actor_num_gpus_per_node"], draft["rollout_num_gpus"] or 0
    trainer *= trainer_needed(draft)
    most, usable = draft["num_gpus_per_node"], usable_gpus(draft, facts)
    needed = max(trainer, rollout) if draft["colocate"] else trainer + rollout
    if draft["actor_num_nodes"] > 1:
        if trainer > most:
            draft.problem(
                f"--actor-num-gpus-per-node {trainer} is more than --num-gpus-per-node {most}, "
                "what may be used of each machine: raise that, or give a smaller number"
            )
        else:
            _divided(draft)
    elif needed > usable and trainer <= usable and _may_divide(draft, facts):
        draft.derive("num_gpus_per_node", usable, "GPUs of this machine")
        _divided(draft)
    elif needed > usable:
        draft.problem(_too_few(draft, facts, trainer, rollout, needed))


def _may_divide(draft: Draft, facts: Facts) -> bool:
    """Whether engines may be on machines without the trainer, whose size is known."""
    known = draft.given("actor_num_gpus_per_node") or not trainer_needed(draft)
    return facts.in_cluster and known and starts_engines(draft) and not draft["colocate"]


def _divided(draft: Draft) -> None:
    values = {field.name: draft[field.name] for field in fields(ClusterConfig)}
    trains, generates = trainer_needed(draft), starts_engines(draft)
    try:
        machines(ClusterConfig(**values), trains=trains, generates=generates)
    except ConfigError as error:
        draft.problem(str(error))


def _too_few(draft: Draft, facts: Facts, trainer: int, rollout: int, needed: int) -> str:
    how = "with --colocate the larger of" if draft["colocate"] else "the sum of"
    seen = "visible" if draft["assume_gpus"] is None else "assumed"
    there, remedy = f"{facts.num_gpus} are {seen}", "give smaller numbers"
    most = draft["num_gpus_per_node"]
    if most < facts.num_gpus:
        there = f"--num-gpus-per-node {most} allows {most} of the {facts.num_gpus} that are {seen}"
        remedy = "raise --num-gpus-per-node, or give smaller numbers"
    if facts.in_cluster and starts_engines(draft) and not draft["colocate"]:
        remedy += ", or --actor-num-gpus-per-node, so that engines may be on other machines"
    if not draft["colocate"]:
        remedy += ", or share the GPUs with --colocate"
    return (
        f"{needed} GPUs are needed ({how} --actor-num-gpus-per-node {trainer} and "
        f"--rollout-num-gpus {rollout}) and {there}: {remedy}{_elsewhere(facts)}"
    )


def _elsewhere(facts: Facts) -> str:
    """How the GPUs of other machines come into a run."""
    trainers = "trainers come onto other machines by --actor-num-nodes"
    return f"; {trainers}" if facts.in_cluster else f"; for those of other machines {_JOIN}"


def backend(draft: Draft, facts: Facts) -> None:
    """NCCL needs GPUs, and GPUs NCCL."""
    gloo = draft["distributed_backend"] == "gloo"
    if gloo and draft["device"] == "cuda":
        draft.problem("--distributed-backend gloo is for a CPU; on GPUs leave it out, or give nccl")
    if draft["device"] != "cpu" or gloo:
        return
    if draft.given("distributed_backend"):
        draft.problem("--distributed-backend nccl needs GPUs; on a CPU leave it out, or give gloo")
    draft.derive("distributed_backend", "gloo", "device cpu")


def several_machines(draft: Draft, facts: Facts) -> None:
    """Trainers on several machines need a cluster."""
    count = draft["actor_num_nodes"]
    if count > 1 and not facts.in_cluster and draft["assume_gpus"] is None:
        draft.problem(f"--actor-num-nodes {count}: {_JOIN}")


RULES = (
    assumed_machine,
    device,
    several_machines,
    external_engines,
    single_gpu,
    trainer_ranks,
    residency,
    engines,
    enough_devices,
    backend,
)
