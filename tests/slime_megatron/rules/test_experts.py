from typing import Any

import pytest
from slime_core.config.draft import Draft, Facts
from slime_megatron.config import MEGATRON_DEFAULTS, megatron_flags
from slime_megatron.rules import experts as expert_rules
from slime_megatron.rules.experts import experts

MODEL = {
    "num_experts": 8,
    "moe_ffn_hidden_size": 24,
    "moe_router_load_balancing_type": "none",
}


def draft(ranks: int = 8, **values: Any) -> Draft:
    made = Draft()
    for flag in reversed(megatron_flags()):
        made.megatron.put(flag.dest, flag.default, "default")
    for name, value in MEGATRON_DEFAULTS.items():
        made.megatron.put(name, value, "default of slime")
    for name, value in (MODEL | values).items():
        made.megatron.put(name, value, "command line")
    made.own.put("actor_num_nodes", 1, "default")
    made.own.put("actor_num_gpus_per_node", ranks, "default")
    experts(made, Facts())
    return made


def test_experts_on_tensor_parallel_ranks_bring_sequence_parallelism():
    found = draft(tensor_model_parallel_size=2, expert_model_parallel_size=4)
    assert found.problems == []
    assert found.megatron["sequence_parallel"] is True
    assert draft().megatron["sequence_parallel"] is False


def test_losses_that_balance_experts_may_be_kept_from_pretraining():
    found = draft(moe_router_load_balancing_type=["seq_aux_loss"], moe_aux_loss_coeff=[1e-4])
    assert found.problems == []


def test_fused_kernels_are_not_there_and_it_is_said():
    found = draft(moe_router_fusion=True, moe_permute_fusion=True)
    assert found.problems == []
    assert "--moe-permute-fusion, --moe-router-fusion: of no effect" in found.notices[0]
    assert found.megatron["moe_permute_fusion"] is False


def test_experts_are_multiplied_together_where_ranks_hold_them_whole():
    assert draft(moe_grouped_gemm=True).megatron["moe_grouped_gemm"] is True
    shared = draft(moe_grouped_gemm=True, tensor_model_parallel_size=2, ranks=2)
    assert "--expert-tensor-parallel-size 1 holds them whole" in shared.notices[0]
    assert shared.megatron["moe_grouped_gemm"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_experts": None, "expert_model_parallel_size": 2}, "needs a model with experts"),
        ({"expert_model_parallel_size": 3, "ranks": 3}, "does not divide the model's 8 experts"),
        ({"tensor_model_parallel_size": 16, "ranks": 16}, "does not divide the moe_ffn"),
        (
            {"tensor_model_parallel_size": 4, "expert_model_parallel_size": 4},
            "8 trainer ranks do not divide by .* = 16: give --expert-tensor-parallel-size 1",
        ),
        ({"moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn chooses experts by other"),
        ({"moe_expert_capacity_factor": 1.0}, "--moe-expert-capacity-factor makes"),
        ({"moe_token_dispatcher_type": "allgather"}, "or give alltoall"),
        ({"moe_router_force_load_balancing": True}, "routes at random"),
    ],
)
def test_what_experts_cannot_be_asked_is_refused_by_flag(values: dict[str, Any], message: str):
    found = draft(**values)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(found.problems))


FLEX: dict[str, Any] = {"moe_token_dispatcher_type": "flex", "moe_enable_deepep": True}


def test_deepep_that_is_not_installed_is_refused_with_what_to_give_instead(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(expert_rules, "find_spec", dict[str, str]().get)
    (told,) = draft(**FLEX).problems
    assert "module deep_ep is not installed" in told
    assert "--moe-token-dispatcher-type alltoall and leave --moe-enable-deepep out" in told
    (told,) = draft(moe_token_dispatcher_type="flex").problems
    assert "give --moe-token-dispatcher-type alltoall, or install DeepEP" in told


def test_deepep_that_is_installed_needs_the_dispatcher_it_belongs_to(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(expert_rules, "find_spec", str)
    assert draft(**FLEX).problems == []
    (told,) = draft(moe_enable_deepep=True).problems
    assert "does not go with --moe-token-dispatcher-type alltoall: leave it out" in told


def test_what_is_said_about_experts_of_a_model_without_any_has_no_effect_and_is_told():
    found = draft(
        num_experts=None,
        moe_router_load_balancing_type="aux_loss",
        moe_ffn_hidden_size=None,
        moe_router_topk=4,
        expert_tensor_parallel_size=2,
        **FLEX,
    )
    assert found.problems == []
    (told,) = found.notices
    assert told.startswith("of no effect, the model has no experts: ")
    for flag in (
        "--moe-router-topk 4",
        "--expert-tensor-parallel-size 2",
        "--moe-enable-deepep",
        "--moe-token-dispatcher-type flex",
    ):
        assert flag in told
    assert found.megatron["moe_enable_deepep"] is False
    assert found.megatron["moe_token_dispatcher_type"] == "alltoall"
    assert found.megatron["expert_tensor_parallel_size"] is None
