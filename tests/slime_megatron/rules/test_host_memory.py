"""What offloading takes of host memory, by hand."""

from typing import Any

import pytest
from slime_core.config.draft import Draft, Facts
from slime_megatron.rules.host_memory import (
    Parameters,
    host_memory,
    host_memory_of_both,
    kept_bytes,
    kept_policies,
    num_parameters,
    offloaded_bytes,
)

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 100,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
BLOCK = 64 * 16 * (4 + 2 * 2) + 16 * 4 * 64 + 2 * 16 + 3 * 64 * 128 + 2 * 64
NUMBER = 100 * 64 + 2 * BLOCK + 64


def make_draft(**changes: Any) -> Draft:
    draft = Draft()
    own = {
        "offload_train": True,
        "device": "cuda",
        "precision": "bf16",
        "actor_num_nodes": 1,
        "actor_num_gpus_per_node": 8,
        "offload_host_memory_gib": None,
        "advantage_estimator": "grpo",
        "compute_advantages_and_returns": True,
        "loss_type": "policy_loss",
        "use_kl_loss": False,
        "kl_coef": 0.0,
        "use_opd": False,
        "opd_type": None,
        "keep_old_actor": False,
    }
    megatron = {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": None,
        "use_distributed_optimizer": True,
        "optimizer_cpu_offload": False,
        "optimizer_offload_fraction": 1.0,
    }
    for values, given in ((draft.own, own), (draft.megatron, megatron)):
        for name in given:
            values.put(name, changes.get(name, given[name]), "test")
    return draft


def test_parameters_are_counted_from_the_config():
    assert num_parameters(QWEN3) == Parameters(NUMBER)


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 2 * 8 + 12),  # a copy of the weights on each rank, one optimizer state over all
        ({"use_distributed_optimizer": False}, (2 + 12) * 8),
        ({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, 2 * 2 + 12),
        ({"precision": "fp32", "actor_num_gpus_per_node": 1}, 4 + 8),
    ],
)
def test_bytes_a_parameter_follow_from_the_layout(changes: dict[str, Any], each: int):
    assert offloaded_bytes(make_draft(**changes), Parameters(1000)) == 1000 * each


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"offload_train": False}, 12),  # the state alone
        ({"offload_train": False, "optimizer_offload_fraction": 0.5}, 6),
        ({}, 2 * 8 + 12),  # the weights go and come, the state stays
        ({"precision": "fp32", "offload_train": False}, 12),
        ({"precision": "fp32", "optimizer_offload_fraction": 0.25}, 4 * 8 + 3 + 6),
    ],
)
def test_an_optimizer_in_host_memory_is_counted_with_its_float32_weights(
    changes: dict[str, Any], each: int
):
    draft = make_draft(optimizer_cpu_offload=True, **changes)
    assert offloaded_bytes(draft, Parameters(1000)) == 1000 * each


def test_too_little_host_memory_for_the_optimizer_says_to_keep_a_smaller_share_there():
    draft = make_draft(optimizer_cpu_offload=True, offload_train=False)
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=NUMBER * 12))
    assert not draft.problems
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=NUMBER * 12 - 1))
    (text,) = draft.problems
    assert text.startswith("--optimizer-cpu-offload keeps optimizer state in host memory")
    assert "or a smaller --optimizer-offload-fraction" in text


def test_routed_experts_alone_are_divided_over_expert_parallel_ranks():
    config = QWEN3 | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }
    found = num_parameters(config)
    assert found.experts == 2 * 4 * 3 * 64 * 32
    assert found.dense == NUMBER - 2 * 3 * 64 * 128 + 2 * 4 * 64  # routers instead
    given = Parameters(dense=1000, experts=3000)
    assert given.total == 4000
    divided = make_draft(expert_model_parallel_size=4)
    assert offloaded_bytes(divided, given) == 1000 * (2 * 8 + 12) + 3000 * (2 * 2 + 12)
    both: dict[str, Any] = {"expert_model_parallel_size": 4, "tensor_model_parallel_size": 2}
    divided = make_draft(**both)
    assert offloaded_bytes(divided, given) == 1000 * (2 * 4 + 12) + 3000 * (2 + 12)
    divided = make_draft(**both, expert_tensor_parallel_size=1)
    assert offloaded_bytes(divided, given) == 1000 * (2 * 4 + 12) + 3000 * (2 * 2 + 12)


def test_an_actor_and_its_critic_share_the_memory_of_a_machine():
    actor, critic = make_draft(advantage_estimator="ppo"), make_draft(advantage_estimator="ppo")
    needed = 2 * NUMBER * 28
    enough = Facts(hf_config=QWEN3, host_bytes=needed)
    little = Facts(hf_config=QWEN3, host_bytes=needed - 1)
    host_memory(actor, Facts(hf_config=QWEN3, host_bytes=1))
    assert not actor.problems  # said once, of both
    assert host_memory_of_both(actor, critic, enough, enough) is None
    text = host_memory_of_both(actor, critic, little, little)
    assert text is not None
    assert "parameters of actor and critic" in text


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 0),
        ({"use_kl_loss": True}, 8 * 2 * (1 + 1)),  # its own as well, while the reference is in
        ({"kl_coef": 0.1, "keep_old_actor": True, "tensor_model_parallel_size": 2}, 4 * 2 * 3),
        ({"use_opd": True, "opd_type": "megatron", "precision": "fp32"}, 8 * 4 * 2),
        ({"use_opd": True, "opd_type": "sglang"}, 0),
        ({"loss_type": "dpo_loss"}, 8 * 2 * 2),
        ({"loss_type": "sft_loss", "use_kl_loss": True}, 0),
    ],
)
def test_weights_of_other_policies_are_counted_too(changes: dict[str, Any], each: int):
    draft = make_draft(**changes)
    assert kept_bytes(draft, Parameters(1000)) == 1000 * each
    needed = NUMBER * each + offloaded_bytes(draft, Parameters(NUMBER))
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=needed))
    assert not draft.problems
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=needed - 1))
    (text,) = draft.problems
    assert all(f"weights of {name}" in text for name in kept_policies(draft)[:1])


@pytest.mark.parametrize("policies", [0, 1, 3])
def test_they_are_those_that_the_objective_asks(policies: int):
    from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
    from slime_core.config.off_policy import OffPolicyConfig
    from slime_core.config.reference import DistillationConfig
    from slime_megatron.iteration.objective import Objective

    objective = Objective(
        advantage=AdvantageConfig(),
        policy_loss=PolicyLossConfig(use_kl_loss=policies > 0),
        off_policy=OffPolicyConfig(keep_old_actor=policies > 1),
        distillation=DistillationConfig(use_opd=policies > 1, opd_type="megatron"),
    )
    flags = {"use_kl_loss": policies > 0, "keep_old_actor": policies > 1, "use_opd": policies > 1}
    draft = make_draft(**flags, opd_type="megatron")
    assert len(kept_policies(draft)) == len(objective.kept_policies) == policies


def test_too_little_host_memory_is_said_before_the_start_with_flags_and_numbers():
    draft, needed = make_draft(), NUMBER * 28
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=needed))
    assert not draft.problems
    host_memory(draft, Facts(hf_config=QWEN3, host_bytes=needed - 1))
    (text,) = draft.problems
    assert "--offload-train" in text
    assert "--no-offload-train" in text
    assert "this machine has left" in text
    more_nodes = make_draft(actor_num_nodes=2, actor_num_gpus_per_node=4)
    host_memory(more_nodes, Facts(hf_config=QWEN3, host_bytes=needed // 2))
    assert not more_nodes.problems


def test_what_is_allowed_may_be_given_and_a_cpu_needs_nothing():
    given = make_draft(offload_host_memory_gib=1.0)
    host_memory(given, Facts(hf_config=QWEN3, host_bytes=1))
    assert not given.problems
    small = make_draft(offload_host_memory_gib=1e-4)
    host_memory(small, Facts(hf_config=QWEN3, host_bytes=None))
    assert "--offload-host-memory-gib allows" in small.problems[0]
    for other in (make_draft(device="cpu"), make_draft(offload_train=False)):
        host_memory(other, Facts(hf_config=QWEN3, host_bytes=1))
        assert not other.problems
