import json

import pytest
from slime_core.errors import ConfigError
from slime_sglang.server.tool_parser import parse, split_reasoning

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}
WRITTEN = {
    "qwen25": 'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    "llama3": '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}',
    "glm45": (
        "Hm.\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    ),
    "deepseekv3": (
        "Hm.<|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>add\n"
        '```json\n{"a": 1, "b": 2}\n```<|tool▁call▁end|><|tool▁calls▁end|>'
    ).replace("|", "\uff5c"),
    "kimi_k2": (
        "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
        '<|tool_call_argument_begin|>{"a": 1, "b": 2}<|tool_call_end|><|tool_calls_section_end|>'
    ),
}


@pytest.mark.parametrize("parser", WRITTEN)
def test_a_call_is_read_as_the_family_writes_it(parser: str) -> None:
    text, calls = parse(WRITTEN[parser], [ADD], parser, first=4)
    (call,) = calls
    assert call["type"] == "function"
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    assert text.strip() == ("" if parser == "llama3" else "Hm.")
    assert call["id"] == "functions.add:4" if parser == "kimi_k2" else call["id"] != "add"


def test_two_calls_in_one_turn_are_two() -> None:
    one = WRITTEN["qwen25"].removeprefix("Hm.\n")
    text, calls = parse(f"{one}\n{one}", [ADD], "qwen25")
    assert [call["function"]["name"] for call in calls] == ["add", "add"]
    assert calls[0]["id"] != calls[1]["id"]
    assert not text


@pytest.mark.parametrize("text", ["Only text.", "<tool_call>\n{broken\n</tool_call>", ""])
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse(text, [ADD], "qwen25") == (text, [])


def test_a_parser_that_sglang_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"--sglang-tool-call-parser gpt names no parser.*qwen25"):
        parse("", [ADD], "gpt")
    with pytest.raises(ConfigError, match=r"--sglang-reasoning-parser gpt names no.*qwen3"):
        split_reasoning("", "gpt")


@pytest.mark.parametrize("opening", ["<think>\n", ""])
def test_reasoning_is_split_off_whoever_opened_it(opening: str) -> None:
    reasoning, said = split_reasoning(f"{opening}Well.\n</think>\n\nYes.", "qwen3")
    assert (reasoning.strip(), said.strip()) == ("Well.", "Yes.")


def test_text_without_reasoning_is_all_said() -> None:
    assert split_reasoning("Yes.", "qwen3") == ("", "Yes.")
