"""What offloading takes of host memory, by hand."""

from typing import Any

import pytest
from slime_core.config.draft import Draft, Facts
from slime_megatron.rules.host_memory import (
    Parameters,
    host_memory,
    host_memory_of_both,
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
