"""Rules and arguments of mixture-of-experts layers, shared by families.

A layer with experts has, in place of one MLP, a router and many MLPs of which each token visits
``topk``; some models add an MLP that every token visits (*shared experts*). Families differ in
which layers have experts and in how the router scores them::

    softmax   probabilities over all experts; the chosen ones maybe divided by their sum
    sigmoid   one score per expert; the choice is made by score + bias, maybe among the best groups
              of experts, the weights are the scores divided by their sum, times a factor
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.blocks.dense import HF_LAYER, MEGATRON_LAYER, gated_mlp
from slime_convert.hf_config import refuse, require, require_sizes
from slime_convert.rules import Condition, HfConfig, Index, Rule, hf

_EXPERT = f"{MEGATRON_LAYER}.mlp.experts.local_experts.{{e}}"
_HF_EXPERT = f"{HF_LAYER}.mlp.experts.{{e}}"

_SIZES = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")

TRAINED_WITHOUT_BALANCING = {
    "moe_router_load_balancing_type": "none",
    "moe_router_bias_update_rate": 0.0,
    "moe_router_dtype": "fp32",
    "moe_token_dispatcher_type": "alltoall",
}
"""How every family's experts are trained unless flags say otherwise; no weight depends on it.

The router computes in float32 whatever the model's precision, and nothing but the objective moves
it: balancing losses and a wandering bias would change the policy behind the objective's back.
"""


def router(*, when: Condition, bias: bool = False) -> tuple[Rule, ...]:
    """Rules of the router; ``bias``: with a correction that only takes part in the choice."""
    ours, theirs = f"{MEGATRON_LAYER}.mlp.router", f"{HF_LAYER}.mlp.gate"
    rules = [Rule(f"{ours}.weight", (hf(f"{theirs}.weight", "experts", "hidden"),), when=when)]
    if bias:
        correction = hf(f"{theirs}.e_score_correction_bias", "experts")
        rules.append(Rule(f"{ours}.expert_bias", (correction,), when=when))
    return tuple(rules)


def routed_experts(*, when: Condition) -> tuple[Rule, ...]:
    """Rules of the experts among which the router chooses."""
    return gated_mlp(_EXPERT, _HF_EXPERT, ffn="expert_ffn", when=when)


def shared_experts(*, when: Condition) -> tuple[Rule, ...]:
    """Rules of the MLP that every token visits beside its experts."""
    return gated_mlp(
        f"{MEGATRON_LAYER}.mlp.shared_experts",
        f"{HF_LAYER}.mlp.shared_experts",
        ffn="shared_ffn",
        when=when,
    )


def after_first_dense(config: HfConfig, index: Index) -> bool:
    """Return whether a layer has experts: all but the first ``first_k_dense_replace``."""
    return index["i"] >= config["first_k_dense_replace"]


def in_first_dense(config: HfConfig, index: Index) -> bool:
    """Return whether a layer has one MLP: the first ``first_k_dense_replace``."""
    return not after_first_dense(config, index)


def sigmoid_rules() -> tuple[Rule, ...]:
    """Rules of all MLPs where the first layers are dense and the router has a bias.

    The layers of DeepSeek-V3 and of what is built like it (GLM-4.5, Kimi K2, Moonlight).
    """
    return (
        *gated_mlp(when=in_first_dense),
        *router(when=after_first_dense, bias=True),
        *routed_experts(when=after_first_dense),
        *shared_experts(when=lambda c, i: after_first_dense(c, i) and has_shared_experts(c)),
    )


def has_shared_experts(config: HfConfig) -> bool:
    """Return whether layers with experts have shared ones too."""
    return bool(config.get("n_shared_experts"))


def sigmoid_dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that ``sigmoid_rules`` name."""
    return {
        "experts": config["n_routed_experts"],
        "expert_ffn": config["moe_intermediate_size"],
        "shared_ffn": config["moe_intermediate_size"] * (config.get("n_shared_experts") or 0),
    }


def sigmoid_counts(config: HfConfig) -> dict[str, int]:
    """Return the number of layers and of experts."""
    return {"i": config["num_hidden_layers"], "e": config["n_routed_experts"]}


def sigmoid_arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments of the layers that ``sigmoid_rules`` describe."""
    require(config, *_SIZES, "first_k_dense_replace", "routed_scaling_factor")
    require_sizes(config, *_SIZES)
    refuse(config, "norm_topk_prob", allowed=(True,), reason="weights that do not sum to one")
    refuse(config, "scoring_func", allowed=("sigmoid", None), reason="only sigmoid is implemented")
    refuse(config, "topk_method", allowed=("noaux_tc", None), reason="only noaux_tc is implemented")
    refuse(config, "moe_layer_freq", allowed=(1, None), reason="only 1 is implemented")
    _refuse_one_normalized(config)
    dense, layers = config["first_k_dense_replace"], config["num_hidden_layers"]
    shared = sigmoid_dims(config)["shared_ffn"]
    return (
        experts_arguments(
            num_experts=config["n_routed_experts"],
            topk=config["num_experts_per_tok"],
            ffn=config["moe_intermediate_size"],
            pattern=[layer >= dense for layer in range(layers)],
        )
        | {
            "moe_router_score_function": "sigmoid",
            "moe_router_pre_softmax": True,
            "moe_router_enable_expert_bias": True,
            "moe_router_topk_scaling_factor": float(config["routed_scaling_factor"]),
        }
        | _groups(config)
        | ({"moe_shared_expert_intermediate_size": shared} if shared else {})
    )


def _groups(config: HfConfig) -> dict[str, Any]:
    """The choice among groups of experts, none where there is one group.

    A group is worth the sum of its best two scores. Megatron sums the best
    ``topk / group_topk``, which is the same only when that is two.
    """
    groups, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
    if groups == chosen:
        return {}
    if config["num_experts_per_tok"] != 2 * chosen:
        raise CheckpointError(
            f"config.json chooses {config['num_experts_per_tok']} experts per token among "
            f"{chosen} of {groups} groups: only two experts per chosen group are implemented"
        )
    return {"moe_router_num_groups": groups, "moe_router_group_topk": chosen}


def softmax_arguments(config: HfConfig, num_experts: int, pattern: list[bool]) -> dict[str, Any]:
    """Return the Megatron arguments of experts scored by softmax, as Qwen's are.

    ``pattern``: whether each layer has experts. With ``norm_topk_prob`` the softmax is taken over
    the chosen experts, which is the same as dividing by their sum.
    """
    require_sizes(config, "num_experts_per_tok", "moe_intermediate_size")
    require(config, "norm_topk_prob")  # implementations disagree about its default
    if config["norm_topk_prob"]:
        _refuse_one_normalized(config)
    return experts_arguments(
        num_experts=num_experts,
        topk=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        pattern=pattern,
    ) | {
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not config["norm_topk_prob"],
    }


def _refuse_one_normalized(config: HfConfig) -> None:
    """Megatron does not divide the score of a single expert by itself, which would give 1."""
    if config["num_experts_per_tok"] == 1:
        raise CheckpointError(
            "config.json says num_experts_per_tok = 1 and norm_topk_prob = True: every expert "
            "would count for 1; only two experts per token and more are implemented"
        )


def experts_arguments(
    *, num_experts: int, topk: int, ffn: int, pattern: list[bool]
) -> dict[str, Any]:
    """Return the Megatron arguments that all models with experts need."""
    if topk > num_experts:
        raise CheckpointError(
            f"config.json gives each token {topk} experts (num_experts_per_tok) of {num_experts}"
        )
    if not any(pattern):
        raise CheckpointError("config.json describes experts, and no layer that has them")
    return {
        "num_experts": num_experts,
        "moe_router_topk": topk,
        "moe_ffn_hidden_size": ffn,
        "moe_layer_freq": layer_freq(pattern),
        **TRAINED_WITHOUT_BALANCING,
    }


def layer_freq(pattern: list[bool]) -> int | str:
    """Return the value of --moe-layer-freq: 1, or a list as an expression ``[0]*1+[1]*47``."""
    return 1 if all(pattern) else "+".join(_runs(pattern))


def _runs(pattern: list[bool]) -> Iterator[str]:
    for experts, run in groupby(pattern):
        yield f"[{int(experts)}]*{len(list(run))}"
