from pathlib import Path

import pytest
import torch
from slime_train.quickstart.cli import write_model
from slime_train.quickstart.model import CHARACTERS, SPECIAL_TOKENS, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=3)


def test_transformers_loads_the_model_and_finds_every_tensor(directory: Path):
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    attention, mlp, norms = 2 * 128 * 128 + 2 * 128 * 64, 3 * 128 * 512, 2 * 128 + 2 * 32
    assert model.num_parameters() == 104 * 128 + 2 * (attention + mlp + norms) + 128
    assert torch.isfinite(model(torch.arange(104)[None]).logits).all()


def test_a_question_and_its_answer_are_few_tokens(directory: Path):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "12+34=?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\n12+34=?<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer.encode(prompt)) == 3 + 7 + 2 + 3
    answer = tokenizer.encode("\\boxed{46}<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(answer) == ["\\boxed{", "4", "6", "}", "<|im_end|>"]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer) == "\\boxed{46}<|im_end|>"


def test_every_printable_character_survives_the_tokenizer(tmp_path: Path):
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode(CHARACTERS)
    first = len(SPECIAL_TOKENS)
    assert ids == list(range(first, first + len(CHARACTERS)))
    assert tokenizer.decode(ids) == CHARACTERS
