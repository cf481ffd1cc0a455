"""What Megatron's learning rates, weight decay, recomputation and overlap ask of one another."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.config.draft import Draft, Facts

from slime_megatron.config import shown, spelling, virtual_stages

_MODULES = (
    "core_attn",
    "gdn_norm_out",
    "mla_up_proj",
    "mlp",
    "moe",
    "moe_act",
    "shared_experts",
)
"""What Megatron can compute again alone."""


def learning_rate(draft: Draft, facts: Facts) -> None:
    """It rises to --lr and falls to --min-lr, and there are steps left after it has risen."""
    values = draft.megatron.values
    for dest in ("min_lr", "lr_warmup_init"):
        if (values[dest] or 0) > values["lr"]:
            draft.problem(
                f"{shown(dest, values[dest])} is more than --lr {values['lr']}: give --lr or less"
            )
    for dest, instead in (
        ("lr_warmup_samples", "--lr-warmup-iters"),
        ("lr_decay_samples", "--lr-decay-iters"),
    ):
        if values[dest]:
            draft.problem(
                f"{shown(dest, values[dest])} counts samples, and a run's schedule counts steps: "
                f"give {instead}"
            )
    if values["lr_decay_style"] == "WSD" and values["lr_wsd_decay_iters"] is None:
        draft.problem(
            "--lr-decay-style WSD falls at the end of the run: give --lr-wsd-decay-iters, the "
            "steps in which it does"
        )
    _warmup(draft, values)


def _warmup(draft: Draft, values: Mapping[str, Any]) -> None:
    """It ends before the schedule does."""
    steps = values["lr_warmup_iters"]
    if steps and values["lr_warmup_fraction"] is not None:
        draft.problem(
            f"{shown('lr_warmup_iters', steps)} and "
            f"{shown('lr_warmup_fraction', values['lr_warmup_fraction'])} both say how long the "
            "learning rate rises: give one of them"
        )
    decay = values["lr_decay_iters"]
    total = decay or values["train_iters"]
    if draft["num_rollout"] and not draft["debug_rollout_only"] and steps >= total:
        last = "--lr-decay-iters" if decay else "the run's steps"
        draft.problem(
            f"{shown('lr_warmup_iters', steps)} must be less than the schedule's length {total} "
            f"({last}): give fewer, or more than {steps} to --lr-decay-iters"
        )


def weight_decay(draft: Draft, facts: Facts) -> None:
    """It is constant, or goes from one value to another."""
    values = draft.megatron.values
    ends = ("start_weight_decay", "end_weight_decay")
    style = values["weight_decay_incr_style"]
    if style == "constant":
        for dest in ends:
            if values[dest] is not None:
                draft.problem(
                    f"{shown(dest, values[dest])} is for a weight decay that grows: give "
                    "--weight-decay alone, or --weight-decay-incr-style linear (or cosine) with "
                    "--start-weight-decay and --end-weight-decay"
                )
        return
    start, end = (values[dest] for dest in ends)
    if start is None or end is None:
        draft.problem(
            f"--weight-decay-incr-style {style} goes from one value to another: give both "
            "--start-weight-decay and --end-weight-decay"
        )
    elif end < start:
        draft.problem(
            f"--end-weight-decay {end} is less than --start-weight-decay {start}: give as much "
            "or more"
        )


def recomputation(draft: Draft, facts: Facts) -> None:
    """Whole layers are computed again by --recompute-method, modules of them without it."""
    values = draft.megatron.values
    granularity, modules = values["recompute_granularity"], values["recompute_modules"]
    if values["recompute_activations"] or values["moe_layer_recompute"]:
        granularity = granularity or "selective"
    _known_modules(draft, modules or ())
    if granularity == "full":
        if values["moe_layer_recompute"]:
            draft.problem(
                "--moe-layer-recompute: --recompute-granularity full computes whole layers again "
                "already: leave it out"
            )
        for dest, words in (
            ("recompute_method", "uniform (or block)"),
            ("recompute_num_layers", "1 (or more)"),
        ):
            if values[dest] is None:
                draft.problem(f"--recompute-granularity full also needs {spelling(dest)} {words}")
    else:
        _not_whole_layers(draft, values, granularity)
    _distributed_activations(draft, values, granularity)


def _known_modules(draft: Draft, modules: Sequence[str]) -> None:
    wrong = [name for name in modules if name not in (*_MODULES, "layernorm")]
    if wrong:
        draft.problem(
            f"--recompute-modules {' '.join(wrong)}: no such module; possible: "
            f"{', '.join(_MODULES)}"
        )
    if "layernorm" in modules:
        draft.problem(
            "--recompute-modules layernorm: Megatron computes norms again by way of "
            "TransformerEngine's layers, which are not used: leave it out"
        )


def _not_whole_layers(draft: Draft, values: Mapping[str, Any], granularity: str | None) -> None:
    """What is for whole layers is refused beside modules, and said to do nothing alone."""
    idle: list[str] = []
    for dest in ("recompute_method", "recompute_num_layers"):
        if values[dest] is None:
            continue
        if granularity:
            draft.problem(
                f"{shown(dest, values[dest])} is for --recompute-granularity full, and this run "
                f"has {granularity}: leave it out"
            )
        else:
            idle.append(dest)
    if granularity is None and values["recompute_modules"]:
        idle.append("recompute_modules")
    if idle:
        flags = ", ".join(shown(dest, values[dest]) for dest in idle)
        draft.notice(f"{flags}: of no effect without --recompute-granularity")
    for dest in idle:
        draft.derive_megatron(dest, None, "nothing is computed again")


def _distributed_activations(
    draft: Draft, values: Mapping[str, Any], granularity: str | None
) -> None:
    """Inputs of whole layers are kept in parts by ranks that would all keep the same."""
    if not values["distribute_saved_activations"]:
        return
    size = values["tensor_model_parallel_size"]
    if granularity != "full" or size == 1 or values["sequence_parallel"]:
        draft.problem(
            "--distribute-saved-activations needs --recompute-granularity full and "
            "--tensor-model-parallel-size 2 or more, without --sequence-parallel, which does the "
            "same: leave it out"
        )


def overlap(draft: Draft, facts: Facts) -> None:
    """Weights are gathered beside the forward pass where gradients are reduced so, too."""
    values = draft.megatron.values
    if values["overlap_param_gather"]:
        for dest in ("overlap_grad_reduce", "use_distributed_optimizer"):
            if not values[dest]:
                draft.problem(
                    f"--overlap-param-gather needs {spelling(dest)}: add it, or leave "
                    "--overlap-param-gather out"
                )
    tied = not values["untie_embeddings_and_output_weights"]
    if values["ddp_reduce_scatter_with_fp32_accumulation"] and tied and virtual_stages(values) > 1:
        draft.problem(
            "--ddp-reduce-scatter-with-fp32-accumulation does not go with virtual pipeline stages "
            "where embeddings are the output layer as well: leave it out"
        )
    if values["fp32_residual_connection"] and draft["precision"] == "fp32":
        draft.problem(
            "--fp32-residual-connection is for a model in --bf16 or --fp16, and this run has "
            "--precision fp32: leave it out"
        )


RULES = (learning_rate, weight_decay, recomputation, overlap)
"""After the precision and the number of steps are settled."""
