import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slime_core.config.data import DataConfig
from slime_core.config.evaluation import EvalConfig
from slime_core.config.rollout import RolloutConfig, SamplingConfig
from slime_core.data.prompt_room import PromptRoom
from slime_sglang.answers.engine_requests import SAYS_TOO_LONG
from slime_sglang.config import SGLangConfig
from slime_sglang.context_length import PromptRooms, engine_context, model_context
from slime_testing.eval_sets import dataset

SHAPE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "rope_theta": 10000,
    "max_position_embeddings": 2048,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
MODEL = {"max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        ({}, 2048),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 5120),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}, 2048),
        ({"rope_scaling": YARN}, 2048),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 256}}, 2048),
        ({"seq_length": 300}, 300),
        ({"model_max_length": 400, "seq_length": None}, 400),
        ({"seq_length": 300, "rope_scaling": {"type": "linear", "factor": 2.0}}, 600),
    ],
)
def test_a_models_context_is_what_sglang_makes_of_its_config(
    keys: dict[str, Any], length: int, tmp_path: Path
) -> None:
    from sglang.srt.utils import hf_transformers as theirs

    config = {**SHAPE, **keys}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = theirs.get_config(str(tmp_path), trust_remote_code=False)
    assert theirs.get_context_length(theirs.get_hf_text_config(read)) == length
    assert model_context(config) == length


def source_of(module: str) -> str:
    """What SGLang's wheel holds, without loading it."""
    (package,) = importlib.util.find_spec("sglang").submodule_search_locations
    return (Path(package) / "srt" / "managers" / module).read_text()


def test_a_prompt_is_refused_where_sglangs_scheduler_refuses_it() -> None:
    worker = source_of("tp_worker.py")
    (of_context,) = set(re.findall(r"self\.model_config\.context_len - (\d+),", worker))
    (of_input,) = re.findall(r"max_req_len - (\d+),", worker)
    first_refused = 4096 - int(of_context) - int(of_input)
    assert "if len(req.origin_input_ids) >= max_req_input_len:" in source_of("utils.py")
    rooms = PromptRooms.of(MODEL, SGLangConfig(), RolloutConfig(), EvalConfig())
    room = rooms.of_training(SamplingConfig(rollout_max_response_len=1), DataConfig())
    assert room is not None
    assert room.longest == first_refused - 1


def test_refusals_for_length_are_known_by_sglangs_own_words() -> None:
    said = source_of("tokenizer_manager.py") + source_of("utils.py")
    joined = re.sub(r'"\n +f"', "", said)  # a text that goes on in the next line
    for words in SAYS_TOO_LONG:
        assert words in joined


def test_a_config_without_a_length_and_engines_with_one_of_their_own() -> None:
    assert model_context({}) is None
    assert engine_context({}, {"context_length": 512}) == 512
    assert engine_context(MODEL, {"context_length": 512}) == 512
    assert engine_context({"text_config": MODEL}, {}) == 4096


@pytest.mark.parametrize(
    ("sampling", "longest", "why"),
    [
        ({"rollout_max_response_len": 1000}, 3096, "leaves beside a response of 1000"),
        ({"rollout_max_response_len": 3}, 4089, "leaves beside a response of 3"),
        ({"rollout_max_context_len": 4096}, 4089, "4096 holds"),
        ({"rollout_max_context_len": 5000}, 3072, "leaves beside a response of 1024"),
    ],
)
def test_a_prompt_has_what_the_response_leaves_it(
    sampling: dict[str, int], longest: int, why: str
) -> None:
    rooms = PromptRooms.of(MODEL, SGLangConfig(), RolloutConfig(), EvalConfig())
    room = rooms.of_training(SamplingConfig(**sampling), DataConfig())
    assert isinstance(room, PromptRoom)
    assert room.longest == longest
    assert why in room.why


@pytest.mark.parametrize(
    "config",
    [
        {"rollout": RolloutConfig(custom_generate_function_path="my.py:ask")},
        {"rollout": RolloutConfig(rollout_function_path="my.py:roll")},
        {"rollout": RolloutConfig(rollout_external_engine_addrs=("host:1",))},
        {"engines": SGLangConfig(server={"allow_auto_truncate": True})},
        {"data": DataConfig(data_source_path="my.py:Source")},
        {"hf_config": {}},
    ],
)
def test_nothing_is_known_of_prompts_that_somebody_else_may_change(config: dict[str, Any]) -> None:
    of = {"hf_config": MODEL, "engines": SGLangConfig(), "rollout": RolloutConfig(), **config}
    of.setdefault("evaluation", EvalConfig())
    data = of.pop("data", DataConfig())
    assert PromptRooms.of(**of).of_training(SamplingConfig(), data) is None


def test_an_evaluation_set_has_a_response_and_a_generate_function_of_its_own() -> None:
    rooms = PromptRooms.of(MODEL, SGLangConfig(), RolloutConfig(), EvalConfig())
    each = dataset("hard", max_response_len=96)
    room = rooms.of_evaluation(each)
    assert room is not None
    assert room.longest == 4000
    own = replace(each, custom_generate_function_path="my.py:ask")
    assert rooms.of_evaluation(own) is None
    answers = EvalConfig(eval_function_path="my.py:evaluate")
    rooms = PromptRooms.of(MODEL, SGLangConfig(), RolloutConfig(), answers)
    assert rooms.of_evaluation(each) is None
