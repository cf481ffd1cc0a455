"""Agents that talk to the endpoints with the clients they always use."""

import asyncio
import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from slime_core.errors import ConfigError, EngineError
from slime_core.types import Sample, Status
from slime_sglang import run_agent
from slime_sglang.agents import endpoints, openai_chat
from slime_sglang.agents.endpoints import Endpoints
from slime_sglang.agents.run import AgentError
from slime_sglang.agents.session import Session
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.rollout.generation import Generation
from slime_testing.engine_stub import Script, Server, run
from slime_testing.templates import MergingTokenizer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = 'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
USER = {"role": "user", "content": "1+2?"}
PARSING = AgentSettings(tool_call_parser="qwen25")


_OPENED: list[openai.AsyncOpenAI | anthropic.AsyncAnthropic] = []


def openai_client(base_url: str, key: str) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)
    _OPENED.append(client)
    return client


def anthropic_client(base_url: str, key: str) -> anthropic.AsyncAnthropic:
    client = anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0)
    _OPENED.append(client)
    return client


def worked(
    monkeypatch: pytest.MonkeyPatch,
    agent: Any,
    texts: Sequence[str],
    *,
    settings: AgentSettings | None = None,
    family: str = "qwen2",
    timeout_s: float | None = None,
    **changes: Any,
) -> tuple[Any, Script, Server]:
    """What becomes of a sample when ``agent`` works on it with a model that says ``texts``."""

    async def generate(args: Any, sample: Sample, sampling_params: Any) -> Any:
        try:
            return await run_agent(args, sample, sampling_params, agent=agent, timeout_s=timeout_s)
        finally:
            while _OPENED:
                await _OPENED.pop().close()

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "localhost")
    monkeypatch.setattr(sys.modules[__name__], "_generate", generate, raising=False)
    tokenizer, left = MergingTokenizer(family), iter(texts)
    script = Script(tokenizer, lambda asked: [*map(ord, next(left)), tokenizer.eos_token_id])
    server = Server(script)
    sample = Sample(index=4, rollout_id=4, prompt=[USER], label="3")
    monkeypatch.setitem(sys.modules, "agent_under_test", sys.modules[__name__])
    options: dict[str, Any] = {
        "sampling": Sampling(max_response_len=600),
        "agents": settings or PARSING,
        **changes,
    }
    (made,) = run(
        server,
        [sample],
        tokenizer=tokenizer,
        custom_generate="agent_under_test._generate",
        flat={},
        **options,
    )
    return made, script, server


def trained(sample: Sample) -> list[tuple[int, float]]:
    sample.validate()
    response = sample.tokens[sample.prompt_length :]
    rows = zip(response, sample.rollout_log_probs or [], sample.loss_mask or [], strict=True)
    return [(token, log_prob) for token, log_prob, mask in rows if mask]


def said(script: Script, *turns: int) -> list[tuple[int, float]]:
    chosen = [script.said[i] for i in turns] if turns else script.said
    return [pair for ids, log_probs in chosen for pair in zip(ids, log_probs, strict=True)]


def test_an_openai_agent_with_a_tool_gives_a_token_exact_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> float:
        client = openai_client(base_url, api_key)
        messages: list[Any] = [dict(USER)]
        first = await client.chat.completions.create(
            model="any", messages=messages, tools=[ADD], temperature=0.2, logprobs=True
        )
        choice = first.choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
        assert choice.message.content == "Hm."
        assert choice.logprobs.content[0].token == "H"
        assert choice.logprobs.content[0].logprob == -0.001
        assert first.usage.completion_tokens == len(CALL) + 1
        messages.append(choice.message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "3"})
        second = await client.chat.completions.create(
            model="any", messages=messages, tools=[ADD], max_tokens=50
        )
        assert second.choices[0].message.content == "It is 3"
        assert second.choices[0].finish_reason == "stop"
        return 0.75

    sample, script, server = worked(monkeypatch, agent, [CALL, "It is 3"])
    assert trained(sample) == said(script)
    assert (sample.reward, sample.status, sample.rollout_id) == (0.75, Status.COMPLETED, 4)
    assert sample.metadata["messages"][-1]["content"] == "It is 3"
    params = [body["sampling_params"] for body in server.bodies]
    assert [p["temperature"] for p in params] == [1.0, 1.0]
    assert params[1]["max_new_tokens"] == 50
    read = MergingTokenizer("qwen2").decode(sample.tokens)
    assert "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_resp" in read


def test_an_anthropic_agent_with_a_tool_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = {"name": "add", "input_schema": ADD["function"]["parameters"]}

    async def agent(base_url: str, api_key: str, sample: Sample) -> str:
        client = anthropic_client(base_url, api_key)
        messages: list[Any] = [dict(USER)]
        options: Any = {"model": "any", "system": "Add.", "tools": [tool], "max_tokens": 99}
        counted = await client.messages.count_tokens(
            model="any", system="Add.", tools=[tool], messages=messages
        )
        first = await client.messages.create(messages=messages, **options)
        assert counted.input_tokens == first.usage.input_tokens
        assert first.stop_reason == "tool_use"
        text, call = first.content
        assert (text.text, call.name, call.input) == ("Hm.", "add", {"a": 1})
        messages.append({"role": "assistant", "content": first.content})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "3"}
        messages.append({"role": "user", "content": [result]})
        second = await client.messages.create(messages=messages, **options)
        assert second.stop_reason == "end_turn"
        return second.content[0].text

    sample, script, _ = worked(monkeypatch, agent, [CALL, "It is 3"])
    assert trained(sample) == said(script)
    assert sample.response == "It is 3"
    assert MergingTokenizer("qwen2").decode(sample.tokens).startswith("<|im_start|>system\nAdd.")


def test_both_interfaces_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    tool: Any = {"name": "add", "input_schema": ADD["function"]["parameters"]}

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        messages: list[Any] = [dict(USER)]
        chunks = await client.chat.completions.create(
            model="any", messages=messages, tools=[ADD], stream=True
        )
        deltas = [chunk.choices[0] async for chunk in chunks if chunk.choices]
        assert "".join(d.delta.content or "" for d in deltas) == "Hm."
        calls = [call for d in deltas for call in d.delta.tool_calls or ()]
        assert [call.function.arguments for call in calls] == ['{"a": 1}']
        assert deltas[-1].finish_reason == "tool_calls"
        other = anthropic_client(base_url, api_key)
        async with other.messages.stream(
            model="any", messages=messages, tools=[tool], max_tokens=80
        ) as events:
            whole = await events.get_final_message()
        assert whole.content[0].text == "Hm."
        assert whole.content[1].input == {"a": 1}
        assert whole.usage.output_tokens == len(CALL) + 1

    segments, script, _ = worked(monkeypatch, agent, [CALL, CALL])
    assert [trained(s) for s in segments] == [said(script, 0), said(script, 1)]


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_has_an_event_without_a_choice_only_for_who_asks_for_the_usage(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    ends: list[tuple[int, bool]] = []

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        chunks = await client.chat.completions.create(
            model="any", messages=[USER], stream=True, **options
        )
        ends.extend([(len(chunk.choices), chunk.usage is not None) async for chunk in chunks])

    worked(monkeypatch, agent, ["3"])
    *chunks, last = ends
    assert set(chunks) == {(1, False)}
    assert last == ((0, True) if options else (1, False))


@pytest.mark.parametrize("interface", ["openai", "anthropic"])
def test_an_agent_that_wants_no_calls_is_given_text_and_may_go_on(
    monkeypatch: pytest.MonkeyPatch, interface: str
) -> None:
    tool: Any = {"name": "add", "input_schema": ADD["function"]["parameters"]}

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        messages: list[Any] = [dict(USER)]
        for _ in range(2):
            if interface == "openai":
                client = openai_client(base_url, api_key)
                answer = await client.chat.completions.create(
                    model="any", messages=messages, tools=[ADD], tool_choice="none"
                )
                message, reason = answer.choices[0].message, answer.choices[0].finish_reason
                assert (message.content, message.tool_calls, reason) == (CALL, None, "stop")
            else:
                other = anthropic_client(base_url, api_key)
                whole = await other.messages.create(
                    model="any", messages=messages, tools=[tool], tool_choice={"type": "none"},
                    max_tokens=100,
                )  # fmt: skip
                assert [(b.type, b.text) for b in whole.content] == [("text", CALL)]
            messages += [{"role": "assistant", "content": CALL}, dict(USER)]

    sample, script, _ = worked(monkeypatch, agent, [CALL, CALL])
    assert trained(sample) == said(script)


def test_histories_that_part_become_segments_of_one_rollout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> dict[str, Any]:
        client = openai_client(base_url, api_key)

        async def ask(*messages: Any) -> Any:
            answer = await client.chat.completions.create(model="any", messages=[*messages])
            return {"role": "assistant", "content": answer.choices[0].message.content}

        first = await ask(USER)
        for word in ("left", "right"):
            await ask(USER, first, {"role": "user", "content": word})
        await ask(USER, {**first, "content": "not what was said"}, USER)
        return {"score": 1.0}

    segments, script, _ = worked(monkeypatch, agent, ["one", "two", "three", "four"])
    expected = [said(script, 0, 1), said(script, 2), said(script, 3)]
    assert [trained(segment) for segment in segments] == expected
    assert {segment.rollout_id for segment in segments} == {4}
    assert all(segment.reward == {"score": 1.0} for segment in segments)


def raw(status: int, kind: str) -> Callable[[httpx.Response], None]:
    def check(reply: httpx.Response) -> None:
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text

    return check


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"messages": [USER], "n": 2}, "`n` must be 1"),
        ("chat/completions", {"messages": []}, "`messages` is empty"),
        ("chat/completions", {"messages": [{"role": "x"}]}, "role of a message"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "'image_url' is not supported",
        ),
        (
            "chat/completions",
            {"messages": [USER], "response_format": {"type": "json_object"}},
            "_f",
        ),
        ("messages", {"messages": [USER], "max_tokens": 0}, "at least 1, got 0"),
        ("messages", {"messages": "x"}, "`messages` must be a list"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": [{"type": "text"}]}]},
            "cannot be read: KeyError: 'text'",
        ),
        ("chat/completions", {"messages": [USER], "response_format": "text"}, "cannot be read"),
        ("chat/completions", {"messages": [USER], "functions": [{"name": "f"}]}, "send `tools`"),
        (
            "chat/completions",
            {"messages": [USER], "max_tokens": "8"},
            "at least 1, got '8'",
        ),
        ("chat/completions", {"messages": [USER], "stop": [""]}, "text and not empty, got ''"),
        ("chat/completions", {"messages": [USER], "stop": 5}, "text and not empty, got 5"),
        (
            "messages",
            {"messages": [USER], "stop_sequences": [None]},
            "not empty, got None",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], message: str
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.post(f"{base_url}/{path}", json=body)
        raw(400, "invalid_request_error")(reply)
        return reply.json()["error"]["message"]

    sample, _, server = worked(monkeypatch, agent, [])
    assert message in sample.response
    assert not server.bodies


@pytest.mark.parametrize("interface", ["openai", "anthropic", "command"])
def test_agents_reach_the_model_past_a_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, interface: str
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")

        async def agent(base_url: str, api_key: str, sample: Sample) -> None:
            if interface == "openai":
                client = openai_client(base_url, api_key)
                await client.chat.completions.create(model="any", messages=[USER])
            else:
                other = anthropic_client(base_url, api_key)
                await other.messages.create(model="any", messages=[USER], max_tokens=5)

        command = [sys.executable, "-c", COMMAND, "0"]
        sample, script, _ = worked(monkeypatch, command if interface == "command" else agent, ["3"])
    assert trained(sample) == said(script)


@pytest.mark.parametrize("path", ["responses", "completions", "models/slime"])
def test_an_agent_that_speaks_another_interface_is_told_which_there_are(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.post(f"{base_url}/{path}", json={"input": "1+2?"})
            raw(404, "not_found_error")(reply)
            await client.post(f"{base_url}/messages", json={"messages": []})
        return reply.json()["error"]["message"]

    sample, _, _ = worked(monkeypatch, agent, [])
    assert f"/{path} is not served: there are POST /v1/chat/completions" in sample.response


def test_an_agent_that_asks_nothing_is_told_what_to_speak_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> float:
        return 1.0

    sample, _, _ = worked(monkeypatch, agent, [])
    assert sample.status is Status.FAILED
    assert "ended without a request to the model" in sample.metadata["error"]
    assert sample.reward is None


def test_an_agent_that_never_reads_an_answer_is_told_to_look_at_its_time_outs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{base_url}/messages", json={"messages": [USER], "max_tokens": 5})

    def unread(self: Session, turn: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(endpoints, "_said", unread)
    sample, _, _ = worked(monkeypatch, agent, ["3"])
    assert sample.status is Status.FAILED
    assert "each of its 1 requests was refused, or given up" in sample.metadata["error"]


@pytest.mark.parametrize("reward", [float("nan"), float("-inf")])
def test_a_reward_that_is_not_finite_costs_the_sample_of_its_agent(
    monkeypatch: pytest.MonkeyPatch, reward: float
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> float:
        client = openai_client(base_url, api_key)
        await client.chat.completions.create(model="any", messages=[USER])
        return reward

    sample, _, _ = worked(monkeypatch, agent, ["3"])
    assert (sample.status, sample.reward) == (Status.FAILED, None)
    assert f"`sample.reward` to {reward}" in sample.metadata["error"]


def test_a_session_is_named_by_path_or_key_and_ends_with_its_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses: list[int] = []

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        root = base_url.partition("/session/")[0]
        body = {"messages": [USER], "max_tokens": 5}
        keys: list[dict[str, str]] = [
            {"Authorization": f"Bearer {api_key}"},
            {"x-api-key": api_key},
            {"Authorization": "Bearer nobody"},
        ]
        async with httpx.AsyncClient(trust_env=False) as client:
            for headers in keys:
                reply = await client.post(f"{root}/v1/messages", json=body, headers=headers)
                statuses.append(reply.status_code)
            models = await client.get(f"{root}/v1/models")
            assert models.json()["data"][0]["id"] == "slime"

    segments, _, _ = worked(monkeypatch, agent, ["a", "b"])
    assert statuses == [200, 200, 401]
    assert len(segments) == 2


def test_an_agent_that_asks_too_often_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        await client.chat.completions.create(model="any", messages=[USER])
        with pytest.raises(openai.RateLimitError, match="--max-turns"):
            await client.chat.completions.create(model="any", messages=[USER])

    sample, script, _ = worked(monkeypatch, agent, ["a"], settings=AgentSettings(max_turns=1))
    assert trained(sample) == said(script)


def test_of_requests_at_once_no_more_are_let_through_than_turns_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)

        async def ask(*, stream: bool) -> str:
            try:
                answer: Any = await client.chat.completions.create(
                    model="any", messages=[USER], stream=stream
                )
                if stream:
                    [_ async for _ in answer]
            except openai.RateLimitError:
                return "refused"
            return "answered"

        outcomes = await asyncio.gather(*(ask(stream=i % 4 > 0) for i in range(16)))
        assert sorted(outcomes) == ["answered"] * 2 + ["refused"] * 14

    settings = AgentSettings(max_turns=2)
    _, script, _ = worked(monkeypatch, agent, ["a", "b"] + ["too many"] * 14, settings=settings)
    assert len(script.said) == 2


class RefusingTokenizer(MergingTokenizer):
    """Has a template that does not render every conversation."""

    def apply_chat_template(self, conversation: Any, *given: Any, **named: Any) -> Any:
        if conversation[-1]["role"] == "system":
            raise ValueError("the last message must be the user's")
        return super().apply_chat_template(conversation, *given, **named)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "system", "content": "?"}], "the last message must be the user's"),
        ([{**USER, "role": "assistant", "tool_calls": ["add"]}, USER], "'str' object has no"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, messages: list[Any], problem: str
) -> None:
    refused: list[tuple[int, str]] = []

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        body = {"model": "any", "messages": messages}
        async with httpx.AsyncClient(timeout=30) as client:
            reply = await client.post(f"{base_url}/chat/completions", json=body, headers=headers)
        refused.append((reply.status_code, reply.text))

    monkeypatch.setattr(sys.modules[__name__], "MergingTokenizer", RefusingTokenizer)
    worked(monkeypatch, agent, ["a"])
    assert refused[0][0] == 400
    assert problem in refused[0][1]


def test_tools_without_a_parser_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="any", messages=[USER], tools=[ADD])

    with pytest.raises(ConfigError, match="--sglang-tool-call-parser"):
        worked(monkeypatch, agent, [], settings=AgentSettings())


def test_an_agent_that_cannot_be_called_leaves_no_session_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Generation] = []

    def agent(base_url: str) -> None: ...

    async def call(generation: Generation, sample: Sample) -> Any:
        found.append(generation)
        made = await generation(sample)
        assert (await generation.endpoints())._sessions == {}
        return made

    sample, *_ = worked(monkeypatch, agent, [], call=call)
    assert sample.status is Status.FAILED
    assert found


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "10.1.2.3"), ("127.0.0.2", None)])
def test_agents_elsewhere_are_told_an_address_that_reaches_this_machine(
    monkeypatch: pytest.MonkeyPatch, host: str, reached: str | None
) -> None:
    def blocking(*_: Any) -> str:
        raise AssertionError("asked a name server in the event loop")

    async def started() -> str:
        served = Endpoints(AgentSettings(host=host))
        await served.start()
        await served.stop()
        return served.url

    monkeypatch.setattr(socket, "gethostbyname", blocking)
    monkeypatch.setattr(endpoints, "network_address", lambda: "10.1.2.3", raising=False)
    assert asyncio.run(started()).startswith(f"http://{reached or host}:")


def test_a_late_agent_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        await client.chat.completions.create(model="any", messages=[USER])
        await asyncio.sleep(60)

    sample, script, _ = worked(monkeypatch, agent, ["a"], timeout_s=0.5)
    assert trained(sample) == said(script)
    assert (sample.status, sample.metadata["agent"]) == (Status.TRUNCATED, "late")


def test_a_timeout_of_the_agents_own_fails_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        async with asyncio.timeout(0.01):  # for a tool, say
            await asyncio.sleep(60)

    sample, *_ = worked(monkeypatch, agent, [])
    assert sample.status is Status.FAILED
    assert sample.metadata["error"].endswith("_generate: TimeoutError: ")
    assert "agent" not in sample.metadata


def test_a_stream_that_nobody_reads_any_more_ends_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    own = Endpoints._ask

    async def slow(*given: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("the request")
            raise
        return await own(*given)

    async def agent(base_url: str, api_key: str, sample: Sample) -> float:
        body = {"model": "any", "messages": [USER], "stream": True}
        headers = {"Authorization": f"Bearer {api_key}"}
        async with httpx.AsyncClient(timeout=httpx.Timeout(60, read=0.2)) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{base_url}/chat/completions", json=body, headers=headers)
        async with asyncio.timeout(30):
            while not ended:
                await asyncio.sleep(0.01)
        return 1.0

    monkeypatch.setattr(Endpoints, "_ask", slow)
    sample, *_ = worked(monkeypatch, agent, [])
    assert (sample.status, ended) == (Status.FAILED, ["the request"])  # nothing was answered


def leaving(body: dict[str, Any], base_url: str, api_key: str) -> socket.socket:
    """The connection of a client that has asked and will not read; closed, it is reset."""
    url = httpx.URL(base_url)
    client = socket.create_connection((url.host, url.port or 80))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    text = json.dumps(body)
    client.sendall(
        f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {api_key}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    return client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", ["when it was said", "when it was to be written"])
def test_a_turn_whose_client_had_gone_is_not_trained_on(
    monkeypatch: pytest.MonkeyPatch, moment: str, *, stream: bool
) -> None:
    clients: list[socket.socket] = []
    reply, write = Session.reply, openai_chat.write

    async def said_to_nobody(*given: Any, **named: Any) -> Any:
        turn = await reply(*given, **named)
        if clients and moment == "when it was said":
            clients.pop().close()
        return turn

    def written_to_nobody(*given: Any) -> Any:
        if clients:
            clients.pop().close()
        return write(*given)

    async def agent(base_url: str, api_key: str, sample: Sample) -> float:
        body = {"model": "any", "messages": [USER]}
        clients.append(leaving({**body, "stream": stream}, base_url, api_key))
        async with asyncio.timeout(30):
            while clients:
                await asyncio.sleep(0.01)
        client = openai_client(base_url, api_key)
        again = await client.chat.completions.create(model="any", messages=[USER])
        first = {"role": "assistant", "content": again.choices[0].message.content}
        await client.chat.completions.create(model="any", messages=[USER, first, USER])
        return 1.0

    monkeypatch.setattr(Session, "reply", said_to_nobody)
    monkeypatch.setattr(openai_chat, "write", written_to_nobody)
    sample, script, _ = worked(monkeypatch, agent, ["same", "same", "more"])
    assert len(script.said) == 3
    assert trained(sample) == said(script, 1, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_engine_ends_the_run_whatever_the_agent_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async def lost(*given: Any) -> Any:
        await asyncio.sleep(0.1)
        raise EngineError("engine_0 ended with exit code 137")

    async def agent(base_url: str, api_key: str, sample: Sample) -> str:
        body = {"model": "any", "messages": [USER], "stream": stream}
        headers = {"Authorization": f"Bearer {api_key}"}
        async with httpx.AsyncClient(timeout=30) as client:
            reply = await client.post(f"{base_url}/chat/completions", json=body, headers=headers)
        assert "exit code 137" in reply.text
        return "no answer"

    monkeypatch.setattr(endpoints, "_PING_S", 0.02)
    monkeypatch.setattr(Endpoints, "_ask", lost)
    with pytest.raises(EngineError, match="exit code 137"):
        worked(monkeypatch, agent, [])


def test_an_agent_whose_rollout_has_ended_leaves_its_sample_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        await client.chat.completions.create(model="any", messages=[USER])
        await found[0].abort()
        with pytest.raises(openai.InternalServerError, match="the rollout has ended"):
            await client.chat.completions.create(model="any", messages=[USER])

    async def call(generation: Generation, sample: Sample) -> Sample | list[Sample]:
        found.append(generation)
        return await generation(sample)

    found: list[Generation] = []
    sample, _, _ = worked(monkeypatch, agent, ["a"], call=call)
    assert (sample.status, sample.tokens, sample.prompt) == (Status.ABORTED, [], [USER])


COMMAND = """
import json, os, sys, urllib.request
task = json.load(sys.stdin)
body = {"messages": task["prompt"], "model": "any"}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
)
answer = json.load(urllib.request.urlopen(request))
print(answer["choices"][0]["message"]["content"], task["label"])
sys.exit(int(sys.argv[1]))
"""


def test_an_agent_may_be_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(COMMAND)
    words = [sys.executable, str(tmp_path / "agent.py"), "0"]
    sample, script, _ = worked(monkeypatch, words, ["three"])
    assert trained(sample) == said(script)
    assert sample.metadata["agent_output"] == "three 3\n"


def test_a_command_is_over_when_it_ends_although_what_it_started_has_its_output_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = time.monotonic()
    sample, _, _ = worked(monkeypatch, ["sh", "-c", "sleep 20 & echo done"], [], timeout_s=30.0)
    assert time.monotonic() - began < 10
    assert sample.metadata["agent_output"] == "done\n"
    assert "agent" not in sample.metadata, "it was not late"


def test_a_command_that_fails_fails_its_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = f"{sys.executable} -c 'raise SystemExit(\"no such repository\")'"
    sample, _, _ = worked(monkeypatch, words, [])
    assert sample.status is Status.FAILED
    assert AgentError.__name__ in sample.metadata["error"]
    assert "exit code 1: no such repository" in sample.metadata["error"]


def test_reasoning_is_kept_apart_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    thinking = AgentSettings(tool_call_parser="qwen25", reasoning_parser="qwen3")
    texts = [f"<think>\nadd\n</think>\n\n{CALL}", "It is 3"]

    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        messages: list[Any] = [dict(USER)]
        first = await client.chat.completions.create(model="any", messages=messages, tools=[ADD])
        message: Any = first.choices[0].message
        assert message.reasoning_content.strip() == "add"
        answer = {"role": "assistant", "content": message.content}
        answer["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        messages += [answer, {"role": "tool", "tool_call_id": "x", "content": "3"}]
        await client.chat.completions.create(model="any", messages=messages, tools=[ADD])

    sample, script, _ = worked(monkeypatch, agent, texts, settings=thinking, family="qwen3")
    assert trained(sample) == said(script)


@pytest.mark.parametrize("num_turns", [100])
def test_a_hundred_turns_over_http_train_on_exactly_what_was_generated(
    monkeypatch: pytest.MonkeyPatch, num_turns: int
) -> None:
    async def agent(base_url: str, api_key: str, sample: Sample) -> None:
        client = openai_client(base_url, api_key)
        messages: list[Any] = [dict(USER)]
        for turn in range(num_turns):
            answer = await client.chat.completions.create(
                model="any", messages=messages, tools=[ADD]
            )
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if message.tool_calls:
                call = message.tool_calls[0].id
                messages.append({"role": "tool", "tool_call_id": call, "content": f"an {turn}"})
            else:
                messages.append({"role": "user", "content": f"then {turn}"})

    texts = [CALL if turn % 3 else f" in{turn}\n\nhean" for turn in range(num_turns)]
    room = Sampling(max_response_len=100_000)
    sample, script, server = worked(monkeypatch, agent, texts, sampling=room)
    assert trained(sample) == said(script)
    assert all(sample.tokens[: len(b["input_ids"])] == b["input_ids"] for b in server.bodies)
