import pickle

import pytest
import torch
from slime_convert import families
from slime_convert.blocks import dense
from slime_convert.family import Family
from slime_convert.rules import Rule, Split, hf
from slime_core.errors import CheckpointError
from slime_testing.tiny import qwen3_config, qwen3_shapes


def table(**changes):
    config = without_nulls(qwen3_config() | changes)
    return families.find(config).parameters(config)


def without_nulls(config):
    return {key: value for key, value in config.items() if value is not None}


def transformers_shapes(config_class, **changes):
    """Names and shapes of a model as transformers itself builds it, without allocating it."""
    from transformers import AutoModelForCausalLM

    config = config_class(**without_nulls(qwen3_config() | changes))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_a_family_expects_the_tensors_that_transformers_makes(model_type, tied):
    from transformers import CONFIG_MAPPING

    changes = {"model_type": model_type, "tie_word_embeddings": tied}
    if model_type != "qwen3":
        changes |= {"head_dim": None}
    made = transformers_shapes(CONFIG_MAPPING[model_type], **changes)
    expected = {name: tensor.shape for name, tensor in table(**changes).hf_tensors.items()}
    assert expected == made


def test_the_builder_of_tiny_models_makes_the_tensors_of_the_family():
    config = qwen3_config(tied=True)
    expected = {name: tensor.shape for name, tensor in table(**config).hf_tensors.items()}
    assert expected == qwen3_shapes(config)


def test_the_megatron_names_are_those_of_the_local_layer_specification():
    attention = "decoder.layers.1.self_attention"
    assert [p.name for p in table().parameters if ".0." not in p.name] == [
        "embedding.word_embeddings.weight",
        "decoder.layers.1.input_layernorm.weight",
        "decoder.layers.1.pre_mlp_layernorm.weight",
        f"{attention}.linear_qkv.weight",
        f"{attention}.linear_proj.weight",
        f"{attention}.q_layernorm.weight",
        f"{attention}.k_layernorm.weight",
        "decoder.layers.1.mlp.linear_fc1.weight",
        "decoder.layers.1.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]


def test_parameters_are_cut_over_tensor_parallel_ranks_as_megatron_cuts_its_layers():
    cut = {".".join(p.name.split(".")[-2:]): p.split for p in table().parameters}
    assert cut == {
        "word_embeddings.weight": Split.VOCAB, "output_layer.weight": Split.VOCAB,
        "linear_qkv.weight": Split.COLUMN, "linear_proj.weight": Split.ROW,
        "linear_fc1.weight": Split.GATED, "linear_fc2.weight": Split.ROW,
        "input_layernorm.weight": Split.REPLICATED, "pre_mlp_layernorm.weight": Split.REPLICATED,
        "q_layernorm.weight": Split.REPLICATED, "k_layernorm.weight": Split.REPLICATED,
        "final_layernorm.weight": Split.REPLICATED,
    }  # fmt: skip


def test_a_parameter_is_found_with_its_tensors_and_full_shape():
    qkv = table().find("decoder.layers.1.self_attention.linear_qkv.weight")
    assert [tensor.name for tensor in qkv.hf] == [
        f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv"
    ]
    assert qkv.shape == (4 * 32 + 2 * 2 * 32, 64)
    assert pickle.loads(pickle.dumps(qkv)) == qkv


def test_an_unknown_parameter_is_named_with_the_nearest_known_one():
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.linear_fc1\.weight`$"):
        table().find("decoder.layers.0.mlp.linear_fc1.weigth")
    with pytest.raises(CheckpointError, match="no parameter of this qwen3 model"):
        table().find("decoder.layers.2.self_attention.q_layernorm.weight")


def test_the_head_of_a_tied_model_is_read_from_the_embedding_and_never_written():
    tied = table(tie_word_embeddings=True)
    output = tied.find("output_layer.weight")
    assert output.alias
    assert [tensor.name for tensor in output.hf] == ["model.embed_tokens.weight"]
    assert output not in tied.exported
    assert "lm_head.weight" not in tied.hf_tensors
    assert tied.ignores("lm_head.weight")


def test_a_mixture_of_experts_is_a_declaration_like_any_other():
    """Two layers, the first dense, the second with a router and three experts."""

    def is_dense(_config, index):
        return index["i"] == 0

    def is_sparse(config, index):
        return not is_dense(config, index)

    mlp, theirs = "decoder.layers.{i}.mlp", "model.layers.{i}.mlp"
    router = hf(f"{theirs}.gate.weight", "experts", "hidden")
    family = Family(
        model_type="sparse",
        title="a test",
        rules=(
            *dense.gated_mlp(when=is_dense),
            Rule(f"{mlp}.router.weight", (router,), when=is_sparse),
            *dense.gated_mlp(
                f"{mlp}.experts.local_experts.{{e}}",
                f"{theirs}.experts.{{e}}",
                ffn="expert_ffn",
                when=is_sparse,
            ),
        ),
        arguments=lambda _config: {},
        dims=lambda config: dense.dense_dims(config) | {"experts": 3, "expert_ffn": 8},
        counts=lambda config: {"i": config["num_hidden_layers"], "e": 3},
    )
    sparse = family.parameters(qwen3_config())
    assert [(p.name.removeprefix("decoder.layers."), p.expert) for p in sparse.parameters] == [
        ("0.mlp.linear_fc1.weight", False),
        ("0.mlp.linear_fc2.weight", False),
        ("1.mlp.router.weight", False),
        *((f"1.mlp.experts.local_experts.{e}.linear_fc1.weight", True) for e in range(3)),
        *((f"1.mlp.experts.local_experts.{e}.linear_fc2.weight", True) for e in range(3)),
    ]
    last = sparse.find("decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight")
    assert last.split is Split.GATED
    assert last.shape == (16, 64)
    assert last.hf[1].name == "model.layers.1.mlp.experts.2.up_proj.weight"
