import json
import logging

import pytest
from slime_core.config.data import DataConfig
from slime_core.data.loading import read
from slime_core.data.prompt_room import PromptRoom
from slime_core.data.prompts import load_prompts, prompt_rows
from slime_core.errors import DataError
from slime_testing.chars import CharTokenizer

CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


@pytest.fixture
def load(tmp_path):
    def load_rows(*rows, max_prompt_len=None, room=None, **config):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_prompts(
            DataConfig(**config),
            CharTokenizer(),
            sources=[str(path)],
            max_prompt_len=max_prompt_len,
            room=room,
        )

    return load_rows


def test_text_is_tokenized_without_special_tokens(load):
    (prompt,) = load({"prompt": "2+2", "label": "4"})
    assert (prompt.prompt, prompt.label, prompt.tokens) == ("2+2", "4", (50, 43, 50))


@pytest.mark.parametrize("key", ["input", "prompt", "question", "messages"])
@pytest.mark.parametrize("label", ["label", "answer"])
def test_usual_columns_are_found(load, key, label):
    (prompt,) = load({key: "a", label: 4})
    assert (prompt.prompt, prompt.label) == ("a", 4)


def test_given_columns_are_taken_and_missed_by_line(load):
    rows = [{"q": "a", "gold": "1", "answer": "x"}, {"q": "b"}]
    assert load(rows[0], input_key="q", label_key="gold")[0].label == "1"
    message = r"p.jsonl:2: no key 'gold'; the row has \['q'\]: choose with --label-key "
    message += r"\(for evaluation --eval-label-key\)"
    with pytest.raises(DataError, match=message):
        load(*rows, input_key="q", label_key="gold")


def test_metadata_that_a_table_leaves_empty_is_none(load):
    rows = [{"prompt": "a", "metadata": text} for text in ("", " ", None)]
    assert [prompt.metadata for prompt in load(*rows)] == [{}, {}, {}]


def test_an_unknown_column_says_what_there_is(load):
    with pytest.raises(DataError, match=r"no key 'input'; the row has \['foo'\].*--input-key"):
        load({"foo": "a"})


def test_chat_templates_render_messages_and_text(load):
    first, second = load({"prompt": CHAT}, {"prompt": "hi"}, apply_chat_template=True)
    assert first.prompt == "<system>S#<user>U#<assistant>"
    assert second.prompt == "<user>hi#<assistant>"
    assert second.tokens == tuple(ord(c) for c in second.prompt)


def test_messages_stay_messages_without_a_template(load):
    (prompt,) = load({"prompt": CHAT})
    assert (prompt.prompt, prompt.tokens) == (CHAT, None)


def test_metadata_and_tools_travel_along(load):
    (prompt,) = load({"prompt": "a", "metadata": '{"rm_type": "f1"}', "tools": [{"name": "t"}]})
    assert prompt.metadata == {"rm_type": "f1", "tools": [{"name": "t"}]}
    with pytest.raises(DataError, match=r":1: 'metadata' is \[1\], not a dict"):
        load({"prompt": "a", "metadata": [1]})


def test_a_prompt_of_the_wrong_kind_is_shown(load):
    with pytest.raises(DataError, match=r":1: 'prompt' is 5, neither a string nor a list"):
        load({"prompt": 5})


def test_long_prompts_are_left_out_and_counted(load, caplog):
    with caplog.at_level(logging.WARNING):
        prompts = load({"prompt": "aaaa"}, {"prompt": "aa"}, max_prompt_len=3)
    assert [p.prompt for p in prompts] == ["aa"]
    assert "left out 1 of 2 rows (too_long)" in caplog.text
    assert "p.jsonl:1: longer than 3 tokens, it has 4" in caplog.text


ROOM = PromptRoom(3, "that the engines' context of 8 leaves beside a response of 5")


def test_a_prompt_that_engines_would_refuse_is_named_with_what_helps(load):
    with pytest.raises(DataError) as error:
        load({"prompt": "aaa"}, {"prompt": "aaaa"}, {"prompt": "b"}, room=ROOM)
    head, row, advice = str(error.value).split("\n  ")
    assert head == "1 row of the prompt files cannot be used:"
    assert row.endswith(
        "p.jsonl:2: the prompt has 4 tokens, more than the 3 that the engines' context of 8 "
        "leaves beside a response of 5"
    )
    for flag in ("--rollout-max-prompt-len", "--rollout-max-context-len", "--eval-max-prompt-len"):
        assert flag in advice
    with pytest.raises(DataError, match=r"prompt is empty(.|\n)*leave them out(.|\n)*mend them"):
        load({"prompt": "aaaa"}, {"prompt": ""}, {"prompt": "b"}, room=ROOM)


def test_prompts_that_engines_would_refuse_are_left_out_where_that_is_asked_for(load):
    rows = {"prompt": "aaa"}, {"prompt": "aaaa"}
    for given in ({"max_prompt_len": 3}, {"data_error_policy": "skip"}):
        assert [p.prompt for p in load(*rows, room=ROOM, **given)] == ["aaa"]


def test_nothing_left_is_an_error(load):
    with pytest.raises(DataError, match="all 1 are too long: raise the limit"):
        load({"prompt": "aa"}, max_prompt_len=1)
    with pytest.raises(DataError, match="there are no rows"):
        load()


def test_a_row_without_the_label_that_its_reward_compares_with_cannot_be_used(load):
    rows = [
        {"prompt": "1+1=", "label": "2"},
        {"prompt": "1+2=", "label": None},
        {"prompt": "write", "label": None, "metadata": {"rm_type": "ifbench"}},
        {"prompt": "1+3=", "label": None},
    ]
    with pytest.raises(DataError) as error:
        load(*rows, compared_by="math")
    assert str(error.value).split("\n  ")[0].startswith("2 of 4 rows")
    assert (
        "p.jsonl:2: 'label' is None, and math compares responses with a label that is text or a "
        "number (first of 2 such rows)"
    ) in str(error.value)
    kept = load(*rows, compared_by="math", data_error_policy="skip")
    assert [prompt.prompt for prompt in kept] == ["1+1=", "write"]
    assert len(load(*rows)) == 4


def test_a_system_prompt_begins_conversations_without_one(load, tmp_path):
    rows = {"prompt": CHAT}, {"prompt": "hi"}, {"prompt": CHAT[1:]}
    (tmp_path / "system.txt").write_text("be brief\n")
    for given in ("be brief", str(tmp_path / "system.txt")):
        prompts = load(*rows, apply_chat_template=True, system_prompt=given)
        assert [p.prompt for p in prompts] == [
            "<system>S#<user>U#<assistant>",
            "<system>be brief#<user>hi#<assistant>",
            "<system>be brief#<user>U#<assistant>",
        ]
    (kept,) = load({"prompt": CHAT[1:]}, system_prompt="S")
    assert kept.prompt == CHAT
    with pytest.raises(DataError, match=r":1: --system-prompt has no place in a prompt of text"):
        load({"prompt": "hi"}, system_prompt="S")


def test_of_several_files_each_prompt_knows_its_own(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text('{"prompt": "x", "label": "1"}\n')
    sources = [str(paths[0]), f"{paths[1]}*2"]
    prompts = load_prompts(DataConfig(), CharTokenizer(), sources=sources)
    assert [prompt.source for prompt in prompts] == sources
    with pytest.raises(DataError, match=r"names a file twice: weight it instead, as in FILE\*2"):
        load_prompts(DataConfig(), CharTokenizer(), sources=[sources[0]] * 2)


STRICT = "{% for m in messages %}{{ m.content + '#' }}{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"


@pytest.mark.parametrize(
    ("template", "told"),
    [(STRICT, "has no attribute 'content'"), (REFUSES, "'raise_exception' is undefined")],
)
def test_a_prompt_that_the_chat_template_does_not_take_is_told_by_line(tmp_path, template, told):
    rows = [{"input": [{"role": "user", "content": "a"}]}]
    rows += [{"input": [{"role": "system", "text": "b"}, {"role": "user", "content": "a"}]}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, tokenizer = DataConfig(apply_chat_template=True), CharTokenizer(template)
    with pytest.raises(DataError, match=r"p.jsonl:2: the chat template does not take") as caught:
        load_prompts(data, tokenizer, sources=[str(path)])
    assert told in str(caught.value)


def test_rows_to_learn_from_hold_an_answer_wherever_they_are(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"input": "a", "label": "b"}\n' * 200 + '{"input": "c", "label": null}\n')
    rows, data = prompt_rows(DataConfig(), answered=True), DataConfig()
    with pytest.raises(DataError, match=r"p.jsonl:201: there is nothing to train on"):
        list(read(rows, data, sources=[str(path)]))
