import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.types import Sample
from slime_sglang.agents.reply import Turn
from slime_sglang.agents.session import Backend, Session
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling
from slime_testing.engine_stub import Script
from slime_testing.templates import MergingTokenizer

TEXT = st.text("anhei 12\n", min_size=1, max_size=6).map(lambda text: f"x{text}x")
ROLES = st.sampled_from(["user", "tool"])


def session_of(tokenizer: MergingTokenizer, script: Script) -> Session:
    async def ask(body: Mapping[str, Any], sample: Sample) -> dict[str, Any]:
        return script(dict(body))[1]

    backend = Backend(
        ask=ask,
        tokenizer=tokenizer,
        sampling=Sampling(max_response_len=10_000),
        settings=AgentSettings(),
        seed=lambda sample, number: number,
    )
    return Session(Sample(index=0, rollout_id=0), backend)


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content, "tool_call_id": "functions.f:0"}


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(["qwen2", "qwen3", "llama3", "glm4", "deepseek", "kimi"]),
    data=st.data(),
)
def test_whatever_is_asked_every_token_of_the_model_is_trained_on_once(
    family: str, data: st.DataObject
) -> None:
    """Each request goes on from any earlier turn, or from none."""
    tokenizer = MergingTokenizer(family)

    def speak(asked: str) -> list[int]:
        characters = [ord(c) for c in data.draw(TEXT)]
        ended = data.draw(st.booleans())
        return [*characters, tokenizer.eos_token_id] if ended else characters

    script = Script(tokenizer, speak)
    session = session_of(tokenizer, script)
    turns: list[Turn] = []

    async def converse() -> None:
        for number in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(-1, len(turns) - 1))
            history = [] if place < 0 else [*turns[place].prompt, turns[place].said.message]
            # Every question another one, or a repeated request would be two turns at one place.
            new = [message(data.draw(ROLES), f"{number} {data.draw(TEXT)}")]
            turns.append(await session.reply([*history, *new]))

    asyncio.run(converse())
    segments = session.samples(Sample(index=0, rollout_id=0))
    trained: list[tuple[int, float]] = []
    for segment in segments:
        segment.validate()
        response = segment.tokens[segment.prompt_length :]
        rows = zip(response, segment.rollout_log_probs or [], segment.loss_mask or [], strict=True)
        trained += [(token, log_prob) for token, log_prob, mask in rows if mask]
    said = [pair for turn in script.said for pair in zip(*turn, strict=True)]
    assert sorted(trained) == sorted(said)
    parents = {id(turn.parent) for turn in turns}
    leaves = [turn for turn in turns if id(turn) not in parents]
    assert [segment.tokens for segment in segments] == [leaf.log.tokens for leaf in leaves]
    assert all(segment.rollout_id == 0 for segment in segments)


def test_of_equal_turns_the_one_that_nobody_heard_is_left_out_and_none_that_is_followed() -> None:
    tokenizer = MergingTokenizer("qwen2")
    script = Script(tokenizer, lambda asked: [ord("a"), tokenizer.eos_token_id])
    session = session_of(tokenizer, script)
    question, answer = message("user", "?"), {"role": "assistant", "content": "a"}

    async def converse() -> list[Turn]:
        heard, unheard = [await session.reply([question]) for _ in range(2)]
        session.unheard(unheard)
        after = await session.reply([question, answer, question])
        session.unheard(heard)  # has a turn after it
        return [heard, after]

    heard, after = asyncio.run(converse())
    assert after.parent is heard
    (sample,) = session.samples(Sample(index=0, rollout_id=0))
    assert sample.loss_mask is not None
    assert sum(sample.loss_mask) == 4
    session.unheard(after)
    (sample,) = session.samples(Sample(index=0, rollout_id=0))
    assert sample.tokens == list(heard.log.tokens)
