"""What a command line may ask of models with experts, and what that needs."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from slime_core.config.draft import Draft, Facts

from slime_megatron.config import MEGATRON_DEFAULTS, megatron_flags, same, shown, spelling
from slime_megatron.flags.effects import OTHER_LAYERS, WITHOUT_EFFECT

_UNBALANCED = ("aux_loss", "global_aux_loss", "none", "seq_aux_loss")
"""Load balancing that leaves the choice of experts alone."""

_FUSED = (
    "moe_permute_fusion",
    "moe_router_fusion",
    "moe_shared_expert_overlap",
)
"""Ways to compute experts that need TransformerEngine; results are the same without."""


def experts(draft: Draft, facts: Facts) -> None:
    """Ranks divide experts, and a token's experts depend on that token alone."""
    values = draft.megatron.values
    if not values["num_experts"]:
        if values["expert_model_parallel_size"] > 1:
            draft.problem("--expert-model-parallel-size needs a model with experts: leave it out")
        _without_experts(draft)
        return
    known = facts.megatron_args
    if known and not known.get("num_experts") and not draft["custom_model_provider_path"]:
        draft.problem(
            f"--num-experts {values['num_experts']}: config.json of --hf-checkpoint "
            f"{draft['hf_checkpoint']} describes a model without experts: leave it out"
        )
        return
    if values["tensor_model_parallel_size"] > 1:
        draft.derive_megatron("sequence_parallel", True, "experts on tensor-parallel ranks need it")
    _check_division(draft, values)
    _check_training(draft, values)
    _check_dispatcher(draft, values)
    etp = values["expert_tensor_parallel_size"] or values["tensor_model_parallel_size"]
    if values["moe_grouped_gemm"] and etp > 1:
        draft.notice(
            "--moe-grouped-gemm: of no effect on experts that tensor-parallel ranks share; "
            "--expert-tensor-parallel-size 1 holds them whole"
        )
        draft.derive_megatron("moe_grouped_gemm", False, "--expert-tensor-parallel-size")
    _check_recomputation(draft, values)
    unused = [name for name in _FUSED if values[name]]
    if unused:
        flags = ", ".join(spelling(name) for name in unused)
        draft.notice(f"{flags}: of no effect, experts are computed by PyTorch's kernels")
    for name in unused:
        draft.derive_megatron(name, False, "needs TransformerEngine")


def _without_experts(draft: Draft) -> None:
    """What is said about experts is told to be of no effect, and not handed on."""
    told: list[str] = []
    for flag in megatron_flags():
        dest = flag.dest
        about = dest == "expert_tensor_parallel_size" or dest.startswith("moe_")
        if not about or dest in OTHER_LAYERS or dest in WITHOUT_EFFECT:
            continue
        value, default = draft.megatron[dest], MEGATRON_DEFAULTS.get(dest, flag.default)
        if draft.megatron.given(dest) and not same(value, default):
            told.append(shown(dest, value))
            draft.derive_megatron(dest, default, "the model has no experts")
    if told:
        draft.notice(f"of no effect, the model has no experts: {', '.join(told)}")


def _check_dispatcher(draft: Draft, values: Mapping[str, Any]) -> None:
    """DeepEP sends tokens to their experts only where it is installed."""
    if values["moe_token_dispatcher_type"] == "allgather":
        draft.problem(
            "--moe-token-dispatcher-type allgather wants sequences of one length, which packed "
            "ones are not: leave it out, or give alltoall"
        )
    flex = values["moe_token_dispatcher_type"] == "flex"
    if values["moe_enable_deepep"] and not flex:
        dispatcher = shown("moe_token_dispatcher_type", values["moe_token_dispatcher_type"])
        draft.problem(
            f"--moe-enable-deepep does not go with {dispatcher}: leave it out, or give "
            "--moe-token-dispatcher-type flex"
        )
    backend = values["moe_flex_dispatcher_backend"]
    if flex and backend in ("deepep", "hybridep") and find_spec("deep_ep") is None:
        also = ("--moe-enable-deepep",) if values["moe_enable_deepep"] else ()
        if draft.megatron.given("moe_flex_dispatcher_backend"):
            also = (*also, shown("moe_flex_dispatcher_backend", backend))
        left = f" and leave {' and '.join(also)} out" if also else ""
        draft.problem(
            "--moe-token-dispatcher-type flex needs DeepEP, whose module deep_ep is not installed "
            f"here: give --moe-token-dispatcher-type alltoall{left}, or install DeepEP"
        )


def _check_division(draft: Draft, values: Mapping[str, Any]) -> None:
    """The ranks of a pipeline stage divide into groups that hold all experts."""
    ep = values["expert_model_parallel_size"]
    tp, pp = values["tensor_model_parallel_size"], values["pipeline_model_parallel_size"]
    etp = values["expert_tensor_parallel_size"] or tp
    ranks = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    if values["num_experts"] % ep:
        draft.problem(
            f"--expert-model-parallel-size {ep} does not divide the model's "
            f"{values['num_experts']} experts"
        )
    if (values["moe_ffn_hidden_size"] or 0) % etp:
        draft.problem(
            f"--expert-tensor-parallel-size {etp} does not divide the moe_ffn_hidden_size "
            f"{values['moe_ffn_hidden_size']} of an expert (it is --tensor-model-parallel-size "
            "unless given)"
        )
    if ranks % (ep * etp * pp):
        draft.problem(
            f"{ranks} trainer ranks do not divide by --expert-model-parallel-size {ep} * "
            f"--expert-tensor-parallel-size {etp} * --pipeline-model-parallel-size {pp} = "
            f"{ep * etp * pp}: give --expert-tensor-parallel-size 1 to hold experts whole"
        )


def _check_recomputation(draft: Draft, values: Mapping[str, Any]) -> None:
    """Activations inside experts are not computed again; those of a whole layer of them can be."""
    modules: list[str] = list(values["recompute_modules"] or ())
    if "moe_act" in modules:
        draft.notice(
            "--recompute-modules moe_act: of no effect, experts keep their activations; moe "
            "computes a layer of them again"
        )
        kept = [name for name in modules if name != "moe_act"]
        draft.derive_megatron("recompute_modules", kept or None, "moe_act has no effect")


def _check_training(draft: Draft, values: Mapping[str, Any]) -> None:
    """A token's experts depend on that token and the weights alone."""
    given = values["moe_router_load_balancing_type"]
    kinds = [given] if isinstance(given, str) else list(given)
    for kind in kinds:
        if kind not in _UNBALANCED:
            draft.problem(
                f"--moe-router-load-balancing-type {kind} chooses experts by other tokens of the "
                "batch, which log-probabilities must not depend on: give none"
            )
    for name in ("moe_expert_capacity_factor", "moe_input_jitter_eps", "moe_router_force_biased"):
        if values[name] is not None:
            draft.problem(
                f"{spelling(name)} makes a token's experts depend on chance or on other tokens, "
                "which log-probabilities must not: leave it out"
            )
    if values["moe_router_force_load_balancing"]:
        draft.problem("--moe-router-force-load-balancing routes at random: leave it out")
