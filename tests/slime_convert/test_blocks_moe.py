"""Families with experts: the tensors transformers writes, the layers Megatron builds."""

import pytest
from safetensors import safe_open
from slime_convert import families
from slime_convert.blocks import moe
from slime_core.errors import CheckpointError
from slime_testing.tiny_families import family_config, make_family

SAVED = ["qwen3_moe", "glm4", "glm4_moe", "mimo"]


def shapes_of(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("model_type", SAVED)
def test_a_family_expects_the_tensors_that_transformers_writes(model_type, tmp_path):
    directory = make_family(tmp_path, model_type)
    config = families.read_config(directory)
    table = families.find(config).parameters(config)
    assert {name: x.shape for name, x in table.hf_tensors.items()} == shapes_of(directory)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("glm4", {"attention_bias": False}),
        ("glm4_moe", {"use_qk_norm": False, "attention_bias": False, "n_shared_experts": 3}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
    ],
)
def test_parts_that_a_config_leaves_out_are_not_expected(model_type, changes, tmp_path):
    directory = make_family(tmp_path, model_type, **changes)
    config = families.read_config(directory)
    table = families.find(config).parameters(config)
    assert {name: x.shape for name, x in table.hf_tensors.items()} == shapes_of(directory)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("glm4_moe", "model.layers.2.eh_proj.weight"),
        ("mimo", "model.mtp_layers.0.input_proj.weight"),
    ],
)
def test_layers_for_further_tokens_are_carried_over(model_type, name):
    config = family_config(model_type)
    table = families.find(config).parameters(config)
    assert table.ignores(name)
    assert table.carries(name)
    assert not table.carries("model.layers.1.mlp.gate.weight")


def test_half_of_each_head_is_rotated_in_pairs():
    config = family_config("glm4")
    arguments = families.find(config).megatron_args(config)
    assert arguments["rotary_percent"] == 0.5
    assert arguments["rotary_interleaved"] is True
    moe = family_config("glm4_moe")
    assert "rotary_interleaved" not in families.find(moe).megatron_args(moe)


def test_groups_of_experts_are_given_where_there_is_a_choice():
    config = family_config("glm4_moe", n_routed_experts=8, n_group=4, topk_group=1)
    arguments = families.find(config).megatron_args(config)
    assert arguments["moe_router_num_groups"] == 4
    assert arguments["moe_router_group_topk"] == 1


def test_one_group_of_experts_is_no_choice():
    config = family_config("glm4_moe", n_group=None, topk_group=None)
    assert "moe_router_num_groups" not in families.find(config).megatron_args(config)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "glm4_moe"])
def test_nothing_but_the_objective_moves_a_router(model_type):
    config = family_config(model_type)
    arguments = families.find(config).megatron_args(config)
    assert arguments["moe_router_load_balancing_type"] == "none"
    assert arguments["moe_router_bias_update_rate"] == 0.0
    assert arguments["moe_router_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ([True, True], 1),
        ([False, True, True], "[0]*1+[1]*2"),
        ([True, False, True], "[1]*1+[0]*1+[1]*1"),
    ],
)
def test_layers_with_experts_are_written_the_way_megatron_reads_them(pattern, value):
    assert moe.layer_freq(pattern) == value
    if isinstance(value, str):
        assert eval(value) == [int(experts) for experts in pattern]  # as Megatron does


def test_qwen_says_which_layers_are_dense_in_two_ways():
    config = family_config(
        "qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3]
    )
    arguments = families.find(config).megatron_args(config)
    assert eval(arguments["moe_layer_freq"]) == [0, 1, 0, 0, 0, 1]
    names = {p.name for p in families.find(config).parameters(config).parameters}
    assert {n.split(".")[2] for n in names if "router" in n} == {"1", "5"}
    assert {n.split(".")[2] for n in names if ".mlp.linear_fc1" in n} == {"0", "2", "3", "4"}


@pytest.mark.parametrize("model_type", SAVED[:3])
def test_a_config_written_by_transformers_says_the_same(model_type):
    from transformers import AutoConfig

    published = family_config(model_type)
    values = {key: value for key, value in published.items() if key != "model_type"}
    written = AutoConfig.for_model(model_type, **values).to_diff_dict()
    family = families.find(published)
    assert family.megatron_args(written) == family.megatron_args(published)
    assert family.parameters(written) == family.parameters(published)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob"),
        ("qwen3_moe", {"num_experts": None}, "gives neither"),
        ("qwen3_moe", {"num_local_experts": 8}, r"gives \[4, 8\]"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "no layer that has them"),
        ("glm4", {"partial_rotary_factor": None}, "partial_rotary_factor"),
        ("glm4", {"head_dim": None}, "lacks head_dim"),
        ("glm4_moe", {"head_dim": None}, "lacks head_dim"),
        ("glm4_moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("glm4_moe", {"n_routed_experts": None}, "lacks n_routed_experts"),
        ("glm4_moe", {"n_group": 2, "num_experts_per_tok": 3}, "3 experts per token among 1 of 2"),
        ("glm4_moe", {"scoring_func": "softmax"}, "only sigmoid"),
        ("glm4_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1 and norm_topk_prob"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1 and norm_topk_prob"),
    ],
)
def test_experts_that_cannot_be_built_are_refused(model_type, changes, message):
    config = family_config(model_type, **changes)
    with pytest.raises(CheckpointError, match=message):
        families.find(config).megatron_args(config)


def test_one_expert_for_each_token_may_count_for_its_probability():
    config = family_config("qwen3_moe", num_experts_per_tok=1, norm_topk_prob=False)
    arguments = families.find(config).megatron_args(config)
    assert (arguments["moe_router_topk"], arguments["moe_router_pre_softmax"]) == (1, True)
