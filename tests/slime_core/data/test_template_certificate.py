from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.data.conversation import TokenLog
from slime_core.data.template_certificate import (
    Template,
    TemplateDriftError,
    certify,
    continuation,
    next_tokens,
)
from slime_testing.templates import FAMILIES, MergingTokenizer

USER = {"role": "user", "content": "Add 1 and 2."}
RESULT = {"role": "tool", "name": "add", "tool_call_id": "functions.add:0", "content": "3"}
CALL = {
    "id": "functions.add:0",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1}'},
}


@pytest.mark.parametrize("family", ["qwen2", "llama3", "glm4", "kimi"])
def test_templates_that_only_append_are_certified(family: str) -> None:
    found = certify(MergingTokenizer(family))
    assert found.is_append_only, found.examples
    found.require()


def test_a_template_that_forgets_reasoning_is_named_with_both_readings() -> None:
    found = certify(MergingTokenizer("qwen3"))
    bad = {way for way, example in found.examples.items() if example}
    assert bad == {"user after reasoning"}
    found.require("tool after reasoning", "user after text")
    with pytest.raises(TemplateDriftError, match=r"had '.*<think>.* later reads '.*--template-dri"):
        found.require()


def test_a_template_that_drops_reasoning_also_before_a_tool_is_found() -> None:
    bad = [
        way for way, example in certify(MergingTokenizer("deepseek")).examples.items() if example
    ]
    assert bad == ["user after reasoning", "tool after reasoning"]


def test_a_generation_prompt_that_later_vanishes_is_found() -> None:
    found = certify(MergingTokenizer("qwen3"), {"enable_thinking": False})
    assert "<think>" in str(found.examples["user after text"])


def test_text_that_merges_across_the_edge_of_a_turn_is_found() -> None:
    tokenizer = MergingTokenizer("glm4", merges=("\nF",))
    assert "tokens in parts" in str(certify(tokenizer).examples["user after text"])


def test_a_template_that_refuses_a_role_says_so() -> None:
    tokenizer = MergingTokenizer("qwen2")
    tokenizer.template += (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ 1 / 0 }}{% endif %}{% endfor %}"
    )
    examples = certify(tokenizer).examples
    assert examples["user after text"] is None
    assert "ZeroDivisionError" in str(examples["tool after text"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("structured", [False, True])
def test_what_follows_a_turn_is_read_off_the_template(family: str, structured: bool) -> None:
    tokenizer = MergingTokenizer(family)
    template = Template(tokenizer)
    turn: dict[str, Any] = {"role": "assistant", "content": "Let me see."}
    if structured:
        turn["tool_calls"] = [CALL]
    found = continuation(template, [USER], turn, [RESULT])
    whole = template.text([USER, turn, RESULT], begin_turn=True)
    assert found.drift is None
    assert whole.endswith(found.text)
    assert "Let me see." not in found.text
    assert "add" not in found.text.replace("add<|im_middle|>", "").replace("functions.add", "")


def test_the_end_of_a_turn_is_added_only_where_the_model_did_not_write_it() -> None:
    tokenizer = MergingTokenizer("qwen2")
    template = Template(tokenizer)
    found = continuation(template, [USER], {"role": "assistant", "content": "3"}, [USER])
    cut, ended = (
        next_tokens(template, found, ord("3")),
        next_tokens(template, found, tokenizer.eos_token_id),
    )
    assert cut == [tokenizer.eos_token_id, *ended]
    assert tokenizer.decode(ended).startswith("\n<|im_start|>user\nAdd")


TEXT = st.text("anhei 12\n.", min_size=1, max_size=12).map(lambda s: s.strip() or "x")


@settings(max_examples=120, deadline=None)
@given(
    family=st.sampled_from(["qwen2", "qwen3", "llama3", "glm4", "deepseek", "kimi"]),
    turns=st.lists(st.tuples(TEXT, st.sampled_from(["user", "tool"]), TEXT), max_size=6),
    data=st.data(),
)
def test_a_conversation_keeps_every_token_and_reads_as_the_template_renders_it(
    family: str, turns: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    tokenizer = MergingTokenizer(family)
    template = Template(tokenizer)
    messages: list[dict[str, Any]] = [USER]
    log = TokenLog(tuple(template.ids(template.text(messages, begin_turn=True))))
    written: list[tuple[int, ...]] = []
    for text, role, answer in turns:
        singles = data.draw(st.booleans(), label="characters, which encode never gives")
        ids = [ord(c) for c in text] if singles else template.ids(text)
        ids = [*ids, tokenizer.eos_token_id] if data.draw(st.booleans(), label="ended") else ids
        log = log.add_model(ids, [-1.0] * len(ids))
        written.append(tuple(ids))
        turn = {"role": "assistant", "content": text}
        new = {"role": role, "content": answer, "tool_call_id": "functions.f:0"}
        found = continuation(template, messages, turn, [new])
        assert found.drift is None
        log = log.add_environment(next_tokens(template, found, ids[-1]))
        messages += [turn, new]
    assert [span.tokens for span in log.spans if span.is_model] == written
    whole = template.text(messages, begin_turn=True)
    read = tokenizer.decode(log.tokens)
    # A model that ends its turn as if a user came next, where a tool does: its token stays.
    assert read.replace("<|user|><|observation|>", "<|observation|>") == whole
