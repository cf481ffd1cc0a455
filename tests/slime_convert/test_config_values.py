"""Values of a config.json that no model can have: told at once, and nothing is built of them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from slime_convert.dist.model import Model
from slime_convert.families import FAMILIES, find, read_config
from slime_convert.published import PRESETS
from slime_core.errors import CheckpointError
from slime_testing.tiny import qwen3_config
from slime_testing.tiny_families import make_family


def refused(directory: Path, text: str) -> str:
    (directory / "config.json").write_text(text)
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        Model.of(directory)
    assert time.monotonic() - began < 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**400}, "num_hidden_layers = 1000"),
        ({"num_hidden_layers": 10**400}, "(401 characters), and a whole number from 1 to 10,000"),
        ({"num_hidden_layers": 10**9}, "a whole number from 1 to 10,000 is needed"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1, and a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2', and a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True, and a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers = 2.0, and a whole number"),
        ({"hidden_size": 2**31}, "hidden_size = 2147483648, and a whole number from 1 to 2,147"),
        ({"head_dim": 0}, "head_dim = 0, and a whole number from 1"),
        ({"head_dim": [32, 32]}, "head_dim = [32, 32], and a whole number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false', and true or false"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, and a number above 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
        ({"rope_theta": float("inf")}, "rope_theta = inf, and a number above 0"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures = 'Qwen3ForCausalLM', and a list"),
        ({"vocab_size": -1, "hidden_size": 0}, "hidden_size = 0, and a whole number from 1"),
        ({"vocab_size": -1, "hidden_size": 0}, "vocab_size = -1, and a whole number from 1"),
    ],
)
def test_the_file_the_key_the_value_and_what_is_allowed_are_told(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    said = refused(tmp_path, json.dumps(qwen3_config() | changes))
    assert said.startswith(f"{tmp_path / 'config.json'} says ")
    assert message in said
    assert len(said) < 400


def test_experts_of_all_layers_together_have_a_bound(tmp_path: Path) -> None:
    config = json.loads((make_family(tmp_path, "qwen3_moe") / "config.json").read_text())
    changed = config | {"num_hidden_layers": 10_000, "num_experts": 10_000}
    said = refused(tmp_path, json.dumps(changed))
    assert "num_hidden_layers = 10000 and num_experts = 10000, and at most 1,000,000" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "qwen3", "num_hidden_layers": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ('{"model_type": ["qwen3"]}', "model_type = ['qwen3']; the families"),
        ('{"model_type": {"a": 1}}', "model_type = {'a': 1}; the families"),
    ],
)
def test_what_python_itself_refuses_is_no_traceback(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_null_is_a_key_that_is_absent(tmp_path: Path, model_type: str) -> None:
    directory = make_family(tmp_path, model_type)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"mlp_only_layers": None}))
    assert find(read_config(directory)).model_type == model_type


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_published_models_are_within_the_bounds(name: str) -> None:
    assert find(PRESETS[name]).model_type == PRESETS[name]["model_type"]
