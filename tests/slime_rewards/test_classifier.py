import asyncio
import json

import pytest
import torch
from slime_core.errors import ConfigError
from slime_core.types import Status
from slime_rewards.config import RewardConfig
from slime_rewards.conversations import as_text, scored_text
from slime_rewards.select import make_reward
from slime_testing import make_sample
from slime_testing.json_server import json_server
from slime_train.quickstart.model import qwen3_config, write_tokenizer
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification


def write_model(directory, num_labels):
    torch.manual_seed(0)
    config = Qwen3Config(**qwen3_config(), num_labels=num_labels)
    config.architectures = None
    Qwen3ForSequenceClassification(config).save_pretrained(directory)
    write_tokenizer(directory)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("scalar"), 1)


def scored(*samples, **config):
    rewards = make_reward(RewardConfig(rm_type="sequence_classification", **config), {})
    try:
        asyncio.run(rewards(samples))
    finally:
        rewards.close()
    return [sample.reward for sample in samples]


def answered(response, prompt="what? "):
    return make_sample(reward=None, response=response, prompt=prompt)


def test_a_model_in_this_process_scores_prompt_and_response(model):
    texts = ["a", "bcd", "a rather long answer to it"] * 8
    rewards = scored(*map(answered, texts), reward_model_path=model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = Qwen3ForSequenceClassification.from_pretrained(model)
    for text, reward in zip(texts, rewards, strict=True):
        with torch.inference_mode():
            alone = reference(**tokenizer("what? " + text, return_tensors="pt")).logits
        assert reward == pytest.approx(alone.item(), abs=1e-4)
    assert len(set(rewards[:3])) == 3


def change(directory, file, **changes):
    path = directory / file
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def test_without_padding_of_its_own_the_score_is_taken_at_the_end_all_the_same(tmp_path):
    path = write_model(tmp_path, 1)
    change(tmp_path, "tokenizer_config.json", pad_token=None)
    change(tmp_path, "config.json", pad_token_id=None)
    texts = ["a<|im_end|>", "a longer one<|im_end|>", "b<|im_end|>"]
    rewards = scored(*map(answered, texts), reward_model_path=path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    reference = Qwen3ForSequenceClassification.from_pretrained(path)
    for text, reward in zip(texts, rewards, strict=True):
        ids = tokenizer("what? " + text, return_tensors="pt").input_ids
        assert tokenizer.decode(ids[0, -1]) == "<|im_end|>"
        with torch.inference_mode():
            every = reference.score(reference.model(ids).last_hidden_state)[0, :, 0]
        assert reward == pytest.approx(every[-1].item(), abs=1e-4)
        assert reward != pytest.approx(every[-2].item(), abs=1e-3)


def test_a_text_does_not_begin_twice(tmp_path):
    write_tokenizer(tmp_path)
    change(tmp_path, "tokenizer_config.json", bos_token="<|im_start|>")
    change(
        tmp_path,
        "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {
                "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
            },
        },
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for prompt in ("<|im_start|>what?", [{"role": "user", "content": "what?"}]):
        ids = tokenizer(scored_text(answered("yes", prompt), tokenizer)).input_ids
        assert ids[0] == start
        assert ids[1] != start


def test_several_outputs_are_a_dictionary(tmp_path):
    path = write_model(tmp_path, 2)
    [reward] = scored(answered("a"), reward_model_path=path, reward_key="LABEL_1")
    assert set(reward) == {"LABEL_0", "LABEL_1"}


def test_messages_get_the_reward_models_own_template(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    sample = answered("yes", [{"role": "user", "content": "is it?"}])
    text = scored_text(sample, tokenizer)
    assert text.index("user") < text.index("is it?") < text.index("assistant") < text.index("yes")
    assert scored_text(sample, None) == "is it?\n\nyes"
    ended = answered("yes<|im_end|>", sample.prompt)
    assert scored_text(ended, tokenizer) == text  # whose template ends the turn itself
    assert as_text([{"role": "system", "content": "s"}, *sample.prompt]) == (
        "system: s\n\nuser: is it?"
    )
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    assert as_text(parts) == "a"


def test_sglang_scores_behind_its_address():
    def reply(path, body):
        assert path == "/classify"
        return 200, {"embedding": [float(len(body["text"]))], "meta_info": {}}

    with json_server(reply) as url:
        assert scored(answered("abc"), rm_url=url) == [9.0]
        assert scored(answered("abcd"), rm_url=f"{url}/classify") == [10.0]


def test_an_answer_without_a_score_is_an_error():
    with json_server(lambda path, body: (200, {"path": path})) as url:
        sample = answered("abc")
        assert scored(sample, rm_url=url) == [None]
    assert sample.status is Status.FAILED
    assert "has no `embedding`" in sample.metadata["error"]


def test_mistakes_are_found_at_start_up(tmp_path):
    for config, message in [
        ({}, "--reward-model-path, or the address"),
        ({"reward_model_path": "gone"}, "gone is not a directory"),
    ]:
        with pytest.raises(ConfigError, match=message):
            scored(answered("a"), **config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    write_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        scored(answered("a"), reward_model_path=str(tmp_path))
