"""Families with multi-latent attention: their tensors, their rotary embeddings, what is refused."""

import itertools

import pytest
from safetensors import safe_open
from slime_convert import families
from slime_core.errors import CheckpointError
from slime_testing.tiny_families import family_config, make_family

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def arguments(model_type, **changes):
    config = family_config(model_type, **changes)
    return families.find(config).megatron_args(config)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deepseek_v3", {}),
        ("deepseek_v3", {"q_lora_rank": None}),
        ("glm4_moe_lite", {}),
        ("kimi_k2", {}),
    ],
)
def test_a_family_expects_the_tensors_that_transformers_writes(model_type, changes, tmp_path):
    directory = make_family(tmp_path, model_type, **changes)
    config = families.read_config(directory)
    table = families.find(config).parameters(config)
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = list(file.keys())
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    assert {name: x.shape for name, x in table.hf_tensors.items()} == saved


def test_the_layer_that_predicts_a_further_token_is_carried_over():
    config = family_config("deepseek_v3", num_nextn_predict_layers=1)
    table = families.find(config).parameters(config)
    assert table.carries("model.layers.2.self_attn.q_a_proj.weight")
    assert table.carries("model.layers.2.eh_proj.weight")
    assert table.ignores("model.layers.2.eh_proj.weight")
    assert not table.ignores("model.layers.1.self_attn.k_proj.weight")
    assert not table.ignores("model.layers.20.eh_proj.weight")


def test_down_projections_are_published_in_one_update():
    """SGLang makes one weight of the two, if one update holds both."""
    config = family_config("deepseek_v3")
    names = [p.name for p in families.find(config).parameters(config).exported if p.with_next]
    following = [
        after.name
        for before, after in itertools.pairwise(families.find(config).parameters(config).exported)
        if before.with_next
    ]
    attention = [f"decoder.layers.{i}.self_attention" for i in (0, 1)]
    assert names == [f"{layer}.linear_q_down_proj.weight" for layer in attention]
    assert following == [f"{layer}.linear_kv_down_proj.weight" for layer in attention]


def test_a_config_that_does_not_say_whether_queries_are_compressed_is_refused():
    config = family_config("deepseek_v3")
    del config["q_lora_rank"]
    with pytest.raises(CheckpointError, match="lacks q_lora_rank"):
        families.find(config).megatron_args(config)


def test_yarn_of_deepseek_v3_becomes_megatron_flags():
    given = arguments("deepseek_v3", rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0})
    assert given["rope_type"] == "yarn"
    assert given["rotary_scaling_factor"] == 40.0
    assert (given["mscale"], given["mscale_all_dim"]) == (1.0, 1.0)
    assert given["yarn_original_max_position_embeddings"] == 4096
    assert (given["yarn_beta_fast"], given["yarn_beta_slow"]) == (32.0, 1.0)


def test_kimi_k2_bends_its_frequencies_between_one_and_one_turn():
    given = arguments("kimi_k2", rope_scaling=YARN | {"beta_fast": 1.0, "beta_slow": 1.0})
    assert (given["yarn_beta_fast"], given["yarn_beta_slow"]) == (1.0, 1.0)
    assert (given["mscale"], given["mscale_all_dim"]) == (1.0, 0.0)


def test_moonlight_has_no_query_latent_and_plain_rope():
    given = arguments("deepseek_v3", q_lora_rank=None, rope_scaling=None, n_group=1, topk_group=1)
    assert "q_lora_rank" not in given
    assert given["rope_type"] == "rope"
    assert given["rotary_scaling_factor"] == 1.0
    assert given["group_query_attention"] is False
    assert given["moe_shared_expert_intermediate_size"] == 48


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_layer_types": ["dense", "sparse"]},
        {"mlp_layer_types": None, "first_k_dense_replace": 1},
        {"mlp_layer_types": None, "first_k_dense_replace": None},
    ],
)
def test_glm_says_which_layers_are_dense_in_two_ways(changes):
    assert arguments("glm4_moe_lite", **changes)["moe_layer_freq"] == "[0]*1+[1]*1"


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("deepseek_v3", {"kv_lora_rank": None}, "lacks kv_lora_rank"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave = False"),
        ("deepseek_v3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ("deepseek_v3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "are needed"),
        ("deepseek_v3", {"rope_scaling": YARN | {"mscale": 0.7}}, "mscale_all_dim together"),
        ("deepseek_v3", {"rope_scaling": YARN | {"mscale_all_dim": 1.0}}, "all_dim together"),
        ("deepseek_v3", {"rope_scaling": YARN | {"factor": "many"}}, "factor = 'many': a number"),
        ("deepseek_v3", {"n_group": None}, "lacks n_group"),
        ("deepseek_v3", {"num_experts_per_tok": 9}, "9 experts .* of 8"),
        ("deepseek_v3", {"rope_scaling": YARN | {"attention_factor": 2.0}}, "attention_factor"),
        ("deepseek_v3", {"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense"]}, "dense layers followed"),
        ("glm4_moe_lite", {"first_k_dense_replace": 2}, "first_k_dense_replace 2"),
        ("glm4_moe_lite", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
        ("glm4_moe_lite", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ],
)
def test_what_cannot_be_built_is_refused(model_type, changes, message):
    with pytest.raises(CheckpointError, match=message):
        arguments(model_type, **changes)
