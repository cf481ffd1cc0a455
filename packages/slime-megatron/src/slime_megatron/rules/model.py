"""Architecture, parallelism, precision and length of the run, in Megatron's terms."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from slime_convert.layer_pattern import written_out
from slime_core.config.draft import MODEL, Draft, Facts

from slime_megatron.config import (
    MEGATRON_DEFAULTS,
    REQUIRED,
    megatron_flags,
    model_parallel_sizes,
    same,
    shown,
    spelling,
    virtual_stages,
)
from slime_megatron.flags.effects import OTHER_LAYERS, WITHOUT_EFFECT
from slime_megatron.rules import training as training_rules
from slime_megatron.rules.experts import experts
from slime_megatron.rules.export import export
from slime_megatron.rules.host_memory import host_memory

_FREE = frozenset(
    {
        "max_position_embeddings",
        "make_vocab_size_divisible_by",
        "moe_router_load_balancing_type",
        "moe_router_bias_update_rate",
        "moe_router_dtype",
        "moe_token_dispatcher_type",
    }
)
"""What a command line may change without changing the network: how experts are trained, too."""

_OF_PYTORCH = ("adam", "sgd")
_OTHER_OPTIMIZERS = "emerging_optimizers"
"""The module that Megatron takes all other optimizers from."""

_FORWARDED = (
    "global_batch_size",
    "micro_batch_size",
    "calculate_per_token_loss",
    "distributed_backend",
    "distributed_timeout_minutes",
    "padded_vocab_size",
    "save",
    "save_interval",
    "load",
    "async_save",
    "no_save_optim",
    "no_load_optim",
    "no_load_rng",
    "finetune",
    "ckpt_step",
)
"""Fields of slime's that Megatron has under the same name."""


def model(draft: Draft, facts: Facts) -> None:
    """There is a model."""
    if not draft["hf_checkpoint"]:
        draft.problem(
            "--hf-checkpoint is missing: give a Hugging Face directory "
            "(config.json, tokenizer files, *.safetensors)"
        )


def architecture(draft: Draft, facts: Facts) -> None:
    """config.json decides; what the command line repeats must agree."""
    for dest, value in facts.megatron_args.items():
        if not draft.megatron.given(dest):
            draft.megatron.put(dest, value, MODEL)
        elif dest not in _FREE and not _agree(dest, draft.megatron[dest], value, facts):
            draft.problem(
                f"{spelling(dest)} gives {dest} = {draft.megatron[dest]}, but config.json of "
                f"--hf-checkpoint {draft['hf_checkpoint']} says {value}: leave the flag out"
            )


def _agree(dest: str, given: Any, value: Any, facts: Facts) -> bool:
    """Equality; of --moe-layer-freq, N says the same as a list with every N-th layer set."""
    if dest == "moe_layer_freq":
        layers = facts.megatron_args["num_layers"]
        given, value = written_out(given, layers), written_out(value, layers)
    return same(given, value)


def without_effect(draft: Draft, facts: Facts) -> None:
    """What only Megatron's own loop reads is told in one line, and not handed on."""
    told: dict[str, list[str]] = {}
    flags = {flag.dest: flag for flag in reversed(megatron_flags())}
    for dest, why in WITHOUT_EFFECT.items():
        default, value = flags[dest].default, draft.megatron[dest]
        if draft.megatron.given(dest) and not same(value, default):
            told.setdefault(why, []).append(shown(dest, value))
            draft.derive_megatron(dest, MEGATRON_DEFAULTS.get(dest, default), "of no effect")
    if told:
        each = "; ".join(f"{', '.join(flags)} ({why})" for why, flags in told.items())
        draft.notice(f"of no effect, leave out: {each}")


def as_built(draft: Draft, facts: Facts) -> None:
    """What follows from the modules a model is built of may be repeated, not changed."""
    for dest, value in REQUIRED.items():
        given = draft.megatron[dest]
        if draft.megatron.given(dest) and not same(given, value):
            draft.problem(
                f"{spelling(dest)} gives {dest} = {given}, but models are built of PyTorch "
                f"modules, without dropout, for which it is {value}: leave the flag out"
            )


def other_layers(draft: Draft, facts: Facts) -> None:
    """Engines compute what config.json describes, and so must the trainer."""
    flags = {flag.dest: flag for flag in reversed(megatron_flags())}
    for dest in sorted(OTHER_LAYERS - set(facts.megatron_args)):
        value = draft.megatron[dest]
        changed = draft.megatron.given(dest) and not same(value, flags[dest].default)
        if changed and not draft["custom_model_provider_path"]:
            draft.problem(
                f"{shown(dest, value)} is for other layers than config.json of --hf-checkpoint "
                f"{draft['hf_checkpoint']} describes: leave it out, or build the model with "
                "--custom-model-provider-path"
            )


def optimizer(draft: Draft, facts: Facts) -> None:
    """Adam is PyTorch's, whose state has one precision, on the device or in host memory."""
    values = draft.megatron.values
    name = values["optimizer"]
    if name not in _OF_PYTORCH and importlib.util.find_spec(_OTHER_OPTIMIZERS) is None:
        draft.problem(
            f"--optimizer {name} needs the package {_OTHER_OPTIMIZERS.replace('_', '-')}, which "
            f"is not installed: install it, or give --optimizer {' or '.join(_OF_PYTORCH)}"
        )
        return
    if values["optimizer_cpu_offload"]:
        _offloaded_optimizer(draft)
        return
    if values["use_precision_aware_optimizer"]:
        draft.problem(
            "--use-precision-aware-optimizer needs TransformerEngine's Adam, which is not used: "
            "leave it out, or give --optimizer-cpu-offload to keep Adam's state in host memory"
        )
    for dest in ("optimizer_offload_fraction", "overlap_cpu_optimizer_d2h_h2d"):
        if draft.megatron.given(dest):
            flag = shown(dest, values[dest])
            draft.notice(f"{flag} has no effect without --optimizer-cpu-offload")


def _offloaded_optimizer(draft: Draft) -> None:
    """Adam's state in host memory, by Megatron's way of keeping it out of its own hands."""
    values = draft.megatron.values
    allowed = {
        "optimizer": ("adam",),
        **dict.fromkeys(("main_grads_dtype", "main_params_dtype"), ("fp32",)),
        **dict.fromkeys(("exp_avg_dtype", "exp_avg_sq_dtype"), ("fp32",)),
    }
    for dest, possible in allowed.items():
        if values[dest] not in possible:
            draft.problem(
                f"{shown(dest, values[dest])} does not go with --optimizer-cpu-offload, which "
                f"keeps Adam's state in float32 in host memory: {shown(dest, possible[0])}, or "
                "leave --optimizer-cpu-offload out"
            )
    draft.derive_megatron("use_precision_aware_optimizer", True, "--optimizer-cpu-offload")


def attention_kernels(draft: Draft, facts: Facts) -> None:
    """A CPU has one way to attend; Megatron allows ``local`` only for layers it builds itself."""
    asked = draft.megatron["attention_backend"]
    if asked == "local":
        draft.derive_megatron("attention_backend", "unfused", "--attention-backend local")
    elif asked in ("flash", "fused") and draft["device"] == "cpu":
        draft.notice(f"--attention-backend {asked} has no effect on a CPU")


def precision(draft: Draft, facts: Facts) -> None:
    """bf16 on GPUs, fp32 on a CPU, unless something is said."""
    asked = [name for name in ("bf16", "fp16") if draft.megatron[name]]
    wanted = draft["precision"]
    if len(asked) == 2:
        draft.problem("--bf16 and --fp16 exclude each other: drop one")
        return
    if asked and wanted not in ("auto", asked[0]):
        draft.problem(f"--{asked[0]} contradicts --precision {wanted}: drop one")
        return
    if wanted == "auto":
        wanted = asked[0] if asked else ("bf16" if draft["device"] == "cuda" else "fp32")
        draft.derive("precision", wanted, f"--{asked[0]}" if asked else f"device {draft['device']}")
    if wanted == "fp16" and draft["device"] == "cpu":
        draft.problem("--fp16 needs GPUs: give --bf16 or --precision fp32 on a CPU")
    if wanted != "fp32":
        draft.derive_megatron(wanted, True, "--precision")


def on_a_cpu(draft: Draft, facts: Facts) -> None:
    """Megatron builds its weights without a GPU when told to."""
    if draft["device"] == "cpu":
        draft.derive_megatron("use_cpu_initialization", True, "device cpu")


def world(draft: Draft, facts: Facts) -> None:
    """The ranks divide into tensor, pipeline and context parallel groups."""
    values = draft.megatron.values
    tp, pp, cp = model_parallel_sizes(values)
    ranks = world_size(draft)
    if ranks % (tp * pp * cp):
        draft.problem(
            f"--actor-num-nodes {draft['actor_num_nodes']} * --actor-num-gpus-per-node "
            f"{draft['actor_num_gpus_per_node']} = {ranks} trainer ranks do not divide by "
            f"--tensor-model-parallel-size {tp} * --pipeline-model-parallel-size {pp} * "
            f"--context-parallel-size {cp} = {tp * pp * cp}"
        )
    _divides(draft, "num_attention_heads", "--tensor-model-parallel-size", tp)
    _divides(draft, "num_query_groups", "--tensor-model-parallel-size", tp)
    _divides(draft, "ffn_hidden_size", "--tensor-model-parallel-size", tp)
    if not _uneven(values):
        _divides(draft, "num_layers", "--pipeline-model-parallel-size", pp)
    if values["sequence_parallel"] and tp == 1:
        draft.notice("--sequence-parallel has no effect with --tensor-model-parallel-size 1")
    if virtual_stages(values) > 1 and pp == 1:
        draft.problem("virtual pipeline stages need --pipeline-model-parallel-size of 2 or more")


def world_size(draft: Draft) -> int:
    """Trainer ranks."""
    return draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]


def _uneven(values: Mapping[str, Any]) -> bool:
    return any(
        values[dest] is not None
        for dest in (
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
            "pipeline_model_parallel_layout",
        )
    ) or bool(
        values["account_for_embedding_in_pipeline_split"]
        or values["account_for_loss_in_pipeline_split"]
    )


def _divides(draft: Draft, dest: str, flag: str, size: int) -> None:
    value = draft.megatron[dest]
    if value and value % size:
        fitting = [n for n in range(1, value + 1) if value % n == 0 and n <= 64]
        draft.problem(
            f"{flag} {size} does not divide the model's {dest} {value}; "
            f"possible: {', '.join(map(str, fitting))}"
        )


def run_length(draft: Draft, facts: Facts) -> None:
    """train_iters = num_rollout * num_steps_per_rollout, for learning-rate schedules."""
    steps = (draft["num_rollout"] or 0) * (draft["num_steps_per_rollout"] or 1)
    draft.derive_megatron("train_iters", max(1, steps), "iterations times steps")


def unused_sizes(draft: Draft, facts: Facts) -> None:
    """Megatron checks a sequence length that packed batches do not have."""
    cp = draft.megatron["context_parallel_size"]
    longest = min(4096, draft.megatron["max_position_embeddings"] or 4096)
    if draft.megatron["seq_length"] is None:
        length = max(2 * cp, longest // (2 * cp) * (2 * cp))
        draft.derive_megatron("seq_length", length, "a bound Megatron asks for; unused")


def forwarded(draft: Draft, facts: Facts) -> None:
    """Hand Megatron the values that slime owns."""
    for name in _FORWARDED:
        if draft[name]:
            draft.derive_megatron(name, draft[name], "slime's flag of this name")


MODEL_RULES = (model, architecture)
"""First: much follows from the model."""

RULES = (
    without_effect,
    as_built,
    other_layers,
    optimizer,
    attention_kernels,
    precision,
    on_a_cpu,
    world,
    experts,
    host_memory,
    run_length,
    export,
    *training_rules.RULES,
    unused_sizes,
    forwarded,
)
"""Last: they hand on what the other rules settled."""
