"""Custom generate functions that speak in turns."""

import asyncio
import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from slime_core.data.template_certificate import TemplateDriftError
from slime_core.types import Sample, Status
from slime_sglang import generate_single, together
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.rollout.generation import Generation
from slime_testing.engine_stub import Script, Server, run
from slime_testing.templates import MergingTokenizer

SEEDS = '''
def extract_tool_call(response):
    return response.partition("CALL ")[2]

def execute_tool(call):
    return str(eval(call))

def compute_reward(sample):
    return float(sample.response == "It is " + sample.label)

async def custom_generate(args, samples, evaluation=False):
    """Multi-turn generation with tool calling."""
    for sample in samples:
        conversation = sample.prompt
        for turn in range(args.max_turns):
            # Generate response
            response = await generate_single(conversation)
            # Check for tool call
            tool_call = extract_tool_call(response)
            if tool_call:
                tool_result = execute_tool(tool_call)
                conversation.append({"role": "assistant", "content": response})
                conversation.append({"role": "tool", "content": tool_result})
            else:
                break
        sample.response = response
        sample.reward = compute_reward(sample)
    return samples
'''
USER = {"role": "user", "content": "1+2?"}


def chat_sample(**changes: Any) -> Sample:
    return Sample(index=4, rollout_id=4, prompt=[dict(USER)], label="3", **changes)


def ended(tokenizer: MergingTokenizer, text: str) -> list[int]:
    """``text`` one character a token, as ``encode`` would not write it, and the end of a turn."""
    return [*map(ord, text), tokenizer.eos_token_id]


def answering(tokenizer: MergingTokenizer, texts: Sequence[str], **options: Any) -> Script:
    left = iter(texts)
    return Script(tokenizer, lambda asked: ended(tokenizer, next(left)), **options)


def played(
    path: Path,
    code: str,
    texts: Sequence[str],
    *,
    family: str = "qwen2",
    sample: Sample | None = None,
    settings: AgentSettings | None = None,
    **changes: Any,
) -> tuple[Any, Script, Server]:
    """What becomes of one sample when ``code`` speaks with a model that says ``texts``."""
    (path / "mine.py").write_text(code)
    tokenizer = MergingTokenizer(family)
    script = answering(tokenizer, texts)
    server = Server(script)
    options: dict[str, Any] = {
        "sampling": Sampling(max_response_len=400),
        "flat": {"max_turns": 5},
        "agents": settings or AgentSettings(),
        **changes,
    }
    (made,) = run(
        server,
        [sample or chat_sample()],
        tokenizer=tokenizer,
        custom_generate=str(path / "mine.py"),
        **options,
    )
    return made, script, server


def trained(sample: Sample) -> list[tuple[int, float]]:
    """Tokens that are trained on, each with the log-probability that is trained against."""
    sample.validate()
    assert sample.loss_mask is not None
    assert sample.rollout_log_probs is not None
    response = sample.tokens[sample.prompt_length :]
    rows = zip(response, sample.rollout_log_probs, sample.loss_mask, strict=True)
    return [(token, log_prob) for token, log_prob, mask in rows if mask]


def said(script: Script) -> list[tuple[int, float]]:
    """Everything the model wrote, token by token."""
    pairs = (zip(ids, log_probs, strict=True) for ids, log_probs in script.said)
    return [pair for turn in pairs for pair in turn]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3", "deepseek", "kimi"])
def test_the_list_form_runs_as_it_is_written_and_gives_a_sample_to_train_on(
    tmp_path: Path, family: str
) -> None:
    sample, script, server = played(tmp_path, SEEDS, ["CALL 1+2", "It is 3"], family=family)
    tokenizer = MergingTokenizer(family)
    assert trained(sample) == said(script)
    assert (sample.reward, sample.response, sample.status) == (1.0, "It is 3", Status.COMPLETED)
    assert sample.token_versions is not None
    assert set(sample.token_versions) == {3, -1}
    asked = [tokenizer.decode(body["input_ids"]) for body in server.bodies]
    messages = sample.metadata["messages"][:3]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked[1] == rendered
    assert sample.tokens[: len(server.bodies[1]["input_ids"])] == server.bodies[1]["input_ids"]
    assert "3" in tokenizer.decode(sample.tokens)


def test_every_request_of_a_conversation_has_a_seed_of_its_own_and_meets_the_same_engine(
    tmp_path: Path,
) -> None:
    _, _, server = played(tmp_path, SEEDS, ["CALL 1", "CALL 2", "It is 3"])
    seeds = [body["sampling_params"]["sampling_seed"] for body in server.bodies]
    assert len(set(seeds)) == 3
    assert len(set(server.keys)) == 1
    assert server.keys[0]


def test_a_sample_crosses_processes_as_plain_text(tmp_path: Path) -> None:
    sample, _, _ = played(tmp_path, SEEDS, ["CALL 1+2", "It is 3"])
    assert type(sample.response) is str
    assert all(type(message["content"]) is str for message in sample.metadata["messages"])
    assert b"slime_sglang" not in pickle.dumps(sample)
    assert copy.deepcopy(sample) == sample


def test_turns_end_when_the_tokens_of_a_response_are_used_up(tmp_path: Path) -> None:
    sample, script, _ = played(
        tmp_path, SEEDS, ["CALL 1+2", "It is 3"], sampling=Sampling(max_response_len=12)
    )
    assert len(script.said) == 1
    assert trained(sample) == said(script)
    assert sample.response_length == 9
    assert sample.status is Status.TRUNCATED


def test_a_prompt_is_given_out_again_as_it_was_before(tmp_path: Path) -> None:
    sample, _, _ = played(tmp_path, SEEDS, ["CALL 1+2", "It is 3"])
    assert sample.prompt == [USER]
    roles = [message["role"] for message in sample.metadata["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_a_conversation_that_fails_leaves_its_prompt_as_it_was(tmp_path: Path) -> None:
    code = SEEDS.replace("compute_reward(sample)\n    return", "1 / 0\n    return")
    sample, _, _ = played(tmp_path, code, ["CALL 1+2", "It is 3"])
    assert (sample.status, sample.prompt) == (Status.FAILED, [USER])


def test_a_function_that_forgets_to_return_says_so(tmp_path: Path) -> None:
    code = "async def custom_generate(args, sample, sampling_params):\n    pass\n"
    sample, _, _ = played(tmp_path, code, [])
    assert sample.status is Status.FAILED
    assert "returned NoneType, not a sample" in sample.metadata["error"]


def test_a_sample_without_tokens_fails_instead_of_being_begun_again_forever(
    tmp_path: Path,
) -> None:
    code = (
        "async def custom_generate(args, sample, sampling_params):\n"
        "    sample.response = 'hello'\n"
        "    return sample\n"
    )
    sample, _, _ = played(tmp_path, code, [])
    assert sample.status is Status.FAILED
    assert "it returned a sample without tokens: call generate_single" in sample.metadata["error"]


def test_a_sample_with_tokens_whose_status_was_forgotten_is_complete(tmp_path: Path) -> None:
    code = (
        "async def custom_generate(args, sample, sampling_params):\n"
        "    sample.tokens, sample.response_length = [1, 2, 3], 2\n"
        "    return sample\n"
    )
    sample, _, _ = played(tmp_path, code, [])
    assert sample.status is Status.COMPLETED


def test_a_response_that_is_no_text_is_named_with_what_returns_text(tmp_path: Path) -> None:
    code = (
        "async def custom_generate(args, sample, sampling_params):\n"
        "    sample.response = await generate_single(args, sample)\n"
        "    return sample\n"
    )
    sample, _, _ = played(tmp_path, code, ["It is 3"])
    assert (sample.status, sample.response) == (Status.FAILED, "")
    assert "set `sample.response` to a Sample, not a str: " in sample.metadata["error"]
    assert "generate_single(conversation) returns text" in sample.metadata["error"]


FORKED = """
from slime_sglang import generate_single, together

async def custom_generate(args, sample, sampling_params):
    question = sample.prompt
    first = await generate_single(question)
    turn = [*question, {"role": "assistant", "content": first}]
    for word in ("right", "left"):
        await generate_single([*turn, {"role": "user", "content": word}])
    await generate_single([{"role": "user", "content": "apart"}], {"max_new_tokens": 3})
    sample.reward = 0.5
    return sample
"""


def test_branches_become_segments_in_which_every_token_is_trained_on_once(tmp_path: Path) -> None:
    segments, script, _ = played(tmp_path, FORKED, ["one", "two", "three", "four"])
    assert [trained(segment) for segment in segments] == [
        [*zip(*script.said[0], strict=True), *zip(*script.said[1], strict=True)],
        [*zip(*script.said[2], strict=True)],
        [*zip(*script.said[3], strict=True)],
    ]
    left, right, apart = segments
    shared = left.prompt_length + 4
    assert left.tokens[:shared] == right.tokens[:shared]
    assert right.rollout_log_probs[:4] == left.rollout_log_probs[:4]
    assert {segment.rollout_id for segment in segments} == {4}
    assert {segment.reward for segment in segments} == {0.5}
    assert apart.metadata["messages"][-1] == {"role": "assistant", "content": "four"}
    assert apart.metadata is not left.metadata


EACH = """
import copy

async def custom_generate(args, sample, sampling_params):
    solver = await generate_single(sample.prompt)
    asked = [{"role": "user", "content": "Is it right? " + solver}]
    checker = await generate_single(asked)
    parts = [solver.into(copy.copy(sample)), checker.into(copy.copy(sample))]
    for part, reward in zip(parts, (1.0, 0.0)):
        part.reward = reward
    return parts
"""


def test_a_function_may_make_the_segments_itself(tmp_path: Path) -> None:
    parts, script, _ = played(tmp_path, EACH, ["3", "Yes"])
    assert [trained(part) for part in parts] == [[*zip(*s, strict=True)] for s in script.said]
    assert [part.reward for part in parts] == [1.0, 0.0]
    assert [part.response for part in parts] == ["3", "Yes"]


TEXT = """
async def custom_generate(args, sample, sampling_params):
    text = sample.prompt
    text += await generate_single(text)
    text += " <result>3</result> "
    sample.response = await generate_single(text, {"stop": ["!"]})
    return sample
"""


def test_a_prompt_that_is_text_goes_on_in_tokens_too(tmp_path: Path) -> None:
    plain = Sample(index=0, prompt="then 1+2 is")
    sample, script, server = played(tmp_path, TEXT, ["an CALL", "then"], sample=plain)
    assert trained(sample) == said(script)
    tokenizer = MergingTokenizer("qwen2")
    read = tokenizer.decode(sample.tokens, skip_special_tokens=True)
    assert read == "then 1+2 isan CALL <result>3</result> then"
    assert server.bodies[1]["sampling_params"]["stop"] == ["!"]


REASONING = ["<think>\nhm\n</think>\n\nGo", "ok"]
ASK_BACK = """
async def custom_generate(args, sample, sampling_params):
    for answer in ("And?", None):
        response = await generate_single(sample.prompt)
        sample.prompt.append({"role": "assistant", "content": response})
        sample.prompt.append({"role": "user", "content": answer})
    return sample
"""


def test_a_template_that_rewrites_history_stops_the_run_with_the_example(tmp_path: Path) -> None:
    with pytest.raises(TemplateDriftError, match=r"<think>.*which later reads.*--template-drift"):
        played(tmp_path, ASK_BACK, REASONING, family="qwen3")


def test_kept_tokens_go_on_as_they_were(tmp_path: Path) -> None:
    settings = AgentSettings(template_drift="keep")
    sample, script, _ = played(tmp_path, ASK_BACK, REASONING, family="qwen3", settings=settings)
    assert trained(sample) == said(script)
    read = MergingTokenizer("qwen3").decode(sample.tokens)
    assert "</think>\n\nGo<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assist" in read


def test_a_fork_begins_a_segment_that_is_rendered_anew(tmp_path: Path) -> None:
    settings = AgentSettings(template_drift="fork")
    segments, script, _ = played(tmp_path, ASK_BACK, REASONING, family="qwen3", settings=settings)
    assert [trained(s) for s in segments] == [[*zip(*pair, strict=True)] for pair in script.said]
    second = MergingTokenizer("qwen3").decode(segments[1].tokens)
    assert "<think>" not in second
    assert "Go<|im_end|>\n<|im_start|>user\nAnd?" in second


def test_tool_turns_keep_reasoning_where_the_template_does(tmp_path: Path) -> None:
    texts = ["<think>\nhm\n</think>\n\nCALL 1+2", "It is 3"]
    sample, script, _ = played(tmp_path, SEEDS, texts, family="qwen3")
    assert trained(sample) == said(script)
    assert sample.reward == 1.0


def test_a_conversation_that_is_aborted_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEEDS)
    tokenizer = MergingTokenizer("qwen2")
    script = answering(tokenizer, ["CALL 1+2", "x"])
    cut = Script(tokenizer, lambda asked: [120], reason="abort")
    found: list[Generation] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not script.said:
            return script(body)
        aborts.append(asyncio.ensure_future(found[0].abort()))
        return cut(body)

    async def call(generation: Generation, sample: Sample) -> Sample | list[Sample]:
        found.append(generation)
        made = await generation(sample)
        await asyncio.gather(*aborts)
        return made

    aborts: list[asyncio.Future[None]] = []
    (made,) = run(
        Server(reply),
        [chat_sample()],
        tokenizer=tokenizer,
        custom_generate=str(tmp_path / "mine.py"),
        sampling=Sampling(max_response_len=400),
        flat={"max_turns": 5},
        call=call,
    )
    assert made.status is Status.ABORTED
    assert made.prompt == [USER]
    assert (made.tokens, made.response_length, made.reward) == ([], 0, None)


def test_a_tool_that_is_not_waited_for_ends_with_the_rollout(tmp_path: Path) -> None:
    code = """
import asyncio

async def custom_generate(args, sample, sampling_params):
    await generate_single(sample.prompt)
    try:
        await asyncio.sleep(60)
    except Exception:
        sample.reward = 1.0
"""
    tokenizer = MergingTokenizer("qwen2")

    async def abort_soon(generation: Generation, sample: Sample) -> Sample | list[Sample]:
        task = asyncio.create_task(generation(sample))
        await asyncio.sleep(0.3)
        await generation.abort()
        return await task

    (tmp_path / "mine.py").write_text(code)
    (made,) = run(
        Server(answering(tokenizer, ["one"])),
        [chat_sample()],
        tokenizer=tokenizer,
        custom_generate=str(tmp_path / "mine.py"),
        call=abort_soon,
    )
    assert (made.status, made.reward, made.tokens) == (Status.ABORTED, None, [])


def test_a_function_that_will_not_be_ended_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import asyncio
from pathlib import Path

async def custom_generate(args, sample, sampling_params):
    while not Path(__file__).with_name("enough").exists():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            pass
"""

    async def returned(generation: Generation, sample: Sample) -> Sample | list[Sample]:
        made = await generation(sample)
        (tmp_path / "enough").touch()
        return made

    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setattr(together, "END_S", 0.2)
    (made,) = run(
        Server(answering(MergingTokenizer("qwen2"), [])),
        [chat_sample()],
        custom_generate=str(tmp_path / "mine.py"),
        custom_timeout_s=0.2,
        call=returned,
    )
    assert made.status is Status.FAILED
    assert "not done after 0.2 s (--custom-generate-timeout-s)" in made.metadata["error"]


def test_tokens_are_not_decoded_one_by_one_unless_somebody_asks_for_them(tmp_path: Path) -> None:
    lengths: list[int] = []

    class Counting(MergingTokenizer):
        def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            lengths.append(len(ids))
            return super().decode(ids, skip_special_tokens=skip_special_tokens)

    (tmp_path / "mine.py").write_text(SEEDS)
    tokenizer = Counting("qwen2")
    script = answering(MergingTokenizer("qwen2"), ["a" * 40, "x" * 40])
    options = {"sampling": Sampling(max_response_len=400), "flat": {"max_turns": 2}}
    run(
        Server(script),
        [chat_sample()],
        tokenizer=tokenizer,
        custom_generate=str(tmp_path / "mine.py"),
        **options,
    )
    assert script.said
    assert len(lengths) < 10


def test_a_name_that_a_file_defines_is_not_replaced(tmp_path: Path) -> None:
    own = "async def generate_single(c):\n    return 'mine'\n"
    sample, _, server = played(tmp_path, own + SEEDS, [])
    assert (sample.response, server.bodies) == ("mine", [])


@pytest.mark.parametrize("structured", [False, True])
def test_a_hundred_turns_train_on_exactly_what_was_generated(
    tmp_path: Path, structured: bool
) -> None:
    code = """
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}

async def custom_generate(args, sample, sampling_params):
    for turn in range(100):
        response = await generate_single(sample.prompt)
        sample.prompt += [
            {"role": "assistant", "content": response},
            {"role": "tool" if args.structured and turn % 2 else "user", "content": f"an {turn}"},
        ]
    return sample
"""
    tokenizer = MergingTokenizer("qwen2")
    texts = [f"then {'an' * (i % 7)} in{i}\n\n" for i in range(100)]
    sample, script, server = played(
        tmp_path,
        code,
        texts,
        flat={"structured": structured},
        sampling=Sampling(max_response_len=100_000),
    )
    assert trained(sample) == said(script)
    assert len(script.said) == 100
    asked = [body["input_ids"] for body in server.bodies]
    assert all(sample.tokens[: len(ids)] == ids for ids in asked)
    rendered = tokenizer.apply_chat_template(
        sample.metadata["messages"][:-1], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(asked[-1]) == rendered


def test_nothing_is_generated_outside_a_run() -> None:
    with pytest.raises(RuntimeError, match="inside a custom generate function"):
        asyncio.run(generate_single([USER]))
