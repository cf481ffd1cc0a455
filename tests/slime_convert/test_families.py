import json
import subprocess
import sys

import pytest
from slime_convert import families
from slime_core.errors import CheckpointError
from slime_testing.tiny import make_qwen3, qwen3_config


def arguments(**changes):
    config = qwen3_config() | changes
    return families.find(config).megatron_args(config)


def test_importing_families_loads_neither_torch_nor_transformers():
    code = (
        "import sys; import slime_convert.families, slime_convert.names, slime_convert.presets;"
        "sys.exit(','.join({'torch', 'numpy', 'transformers', 'megatron'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_arguments_of_a_qwen3_are_those_of_its_config():
    assert arguments() == {
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
        "group_query_attention": True,
        "num_query_groups": 2,
        "kv_channels": 32,
        "qk_layernorm": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "swiglu": True,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-6,
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "vocab_size": 100,
        "max_position_embeddings": 2048,
        "untie_embeddings_and_output_weights": True,
    }


def test_tied_embeddings_stay_tied():
    assert arguments(tie_word_embeddings=True)["untie_embeddings_and_output_weights"] is False


def test_both_spellings_of_the_rotary_base_are_read():
    new = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}
    assert arguments(**new)["rotary_base"] == 5_000_000
    assert arguments(rope_theta=5e6)["rotary_base"] == 5_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None}, "gives neither"),
        ({"rope_parameters": {"rope_theta": 5}}, r"gives \[5, 10000\]"),
        ({"rope_theta": 0.5}, "0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"num_hidden_layers": "2", "vocab_size": 0}, "num_hidden_layers = '2', .*vocab_size = 0"),
        ({"rope_theta": "1e6"}, "rope_theta = '1e6', and a number above 0 is needed"),
        (
            {"rope_theta": None, "rope_parameters": {"rope_theta": [5]}},
            r"rope_theta = \[5\]: a numb",
        ),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small', and a number above 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: .* must be a multiple"),
        ({"vocab_size": None, "hidden_size": None}, "lacks hidden_size, vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"\['sliding_attention'\]"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "slime-convert cast --dtype bf16"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_name(changes, message):
    with pytest.raises(CheckpointError, match=message):
        arguments(**changes)


def test_an_unknown_model_type_lists_the_known_ones():
    with pytest.raises(CheckpointError, match=r"'mamba'; .* llama, .*qwen2, qwen3"):
        families.find({"model_type": "mamba"})
    with pytest.raises(CheckpointError, match="has no model_type"):
        families.find({})


def test_llama3_scaling_becomes_a_factor_and_other_scalings_are_refused():
    llama3 = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    llama = {"model_type": "llama", "rope_scaling": llama3, "head_dim": None}
    given = arguments(**llama)
    assert given["use_rope_scaling"] is True
    assert given["rope_scaling_factor"] == 32.0
    assert given["kv_channels"] == 16  # 64 hidden / 4 heads
    with pytest.raises(CheckpointError, match="8192"):
        arguments(**llama | {"rope_scaling": llama3 | {"original_max_position_embeddings": 4096}})
    with pytest.raises(CheckpointError, match="'linear'"):
        arguments(**llama | {"rope_scaling": {"type": "linear", "factor": 2.0}})


def test_a_config_is_read_from_its_directory(tmp_path):
    made = make_qwen3(tmp_path / "model", layers=3)
    assert families.read_config(made)["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no config.json"), ("{", "not valid JSON"), ("[1]", "holds a list")],
)
def test_a_bad_config_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        families.read_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        families.read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["quantization_config", "rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("value", ["fp8", [1], 8])
def test_a_value_that_should_be_an_object_is_named(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", key: value}))
    with pytest.raises(CheckpointError, match=f"says {key} = .*: an object is needed"):
        families.read_config(tmp_path)


def test_a_scored_model_does_not_pad_with_the_token_that_ends_its_texts():
    """Transformers would take the score at the token before it."""
    config = {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": 7}
    assert families.classifier_config(config) == {
        "architectures": ["Qwen3ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    assert "pad_token_id" not in families.classifier_config({**config, "pad_token_id": 8})
    assert families.classifier_config({**config, "pad_token_id": 7})["pad_token_id"] is None
