import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from slime_core.errors import EngineError
from slime_core.types import Sample, Status
from slime_sglang.answers import engine_requests
from slime_sglang.rollout.generation import Generation
from slime_testing.engine_stub import Server, answered, run


def make_samples(count: int = 1, **changes: Any) -> list[Sample]:
    return [Sample(index=i, tokens=[1, 2], **changes) for i in range(count)]


def test_a_sample_is_one_request_of_token_ids_with_log_probs() -> None:
    server = Server(answered)
    (sample,) = run(server, make_samples())
    body = server.bodies[0]
    assert body["input_ids"] == [1, 2]
    assert body["return_logprob"] is True
    assert body["sampling_params"]["max_new_tokens"] == 8
    assert (sample.tokens, sample.response, sample.status) == ([1, 2, 7], "h", Status.COMPLETED)
    assert (sample.weight_versions, sample.token_versions) == (["3"], [3])
    assert server.keys == [sample.session_id]


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    server = Server(answered)
    run(server, make_samples(20), concurrency=3)
    assert server.most_at_once == 3


def test_seeds_repeat_between_runs_and_differ_between_samples_and_iterations() -> None:
    def seeds(**options: Any) -> list[int]:
        server = Server(answered)
        run(server, make_samples(3), **options)
        return sorted(body["sampling_params"]["sampling_seed"] for body in server.bodies)

    first = seeds(seed=9)
    assert seeds(seed=9) == first
    assert len(set(first)) == 3
    assert not set(first) & set(seeds(seed=10))
    assert not set(first) & set(seeds(seed=9, evaluation=True))


def test_an_evaluation_has_sampling_parameters_of_its_own() -> None:
    server = Server(answered)
    run(server, make_samples(), evaluation=True)
    assert server.bodies[0]["sampling_params"]["temperature"] == 0
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == 5


def test_a_momentary_failure_is_tried_again() -> None:
    replies = iter([(503, {}), (200, answered({})[1])])
    server = Server(lambda body: next(replies))
    (sample,) = run(server, make_samples())
    assert sample.status is Status.COMPLETED
    assert len(server.bodies) == 2


def test_a_failure_that_stays_is_an_engine_error_with_what_was_answered() -> None:
    server = Server(lambda body: (503, {"error": "no workers"}))
    with pytest.raises(EngineError, match=r"failed 3 times.*no workers"):
        run(server, make_samples())


def test_a_request_that_takes_all_the_time_there_is_says_so_with_its_limit() -> None:
    said = r"/generate failed once within 0.01 s \(--sglang-router-request-timeout-secs\)"
    with pytest.raises(EngineError, match=rf"{said}.*TimeoutError"):
        run(Server(answered), make_samples()[:1], timeout_s=0.01)


def test_the_death_of_an_engine_is_what_is_reported() -> None:
    def dead() -> None:
        raise EngineError("engine_0 ended with exit code 137")

    with pytest.raises(EngineError, match="exit code 137"):
        run(Server(lambda body: (502, {})), make_samples(), check_alive=dead)


def test_a_request_that_the_engine_refuses_fails_only_its_sample() -> None:
    def refuse_long(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (400, {"message": "too long"}) if len(body["input_ids"]) > 2 else answered(body)

    samples = [Sample(index=0, tokens=[1, 2, 3]), Sample(index=1, tokens=[1, 2])]
    refused, fine = run(Server(refuse_long), samples)
    assert refused.status is Status.FAILED
    assert "too long" in refused.metadata["error"]
    assert fine.status is Status.COMPLETED


@pytest.mark.parametrize(
    "words",
    [
        "The input (5019 tokens) is longer than the model's context length (2048 tokens).",
        "Requested token count exceeds the model's maximum context length of 64 tokens.",
        "Input length (58 tokens) exceeds the maximum allowed length (58 tokens).",
    ],
)
def test_what_is_beyond_the_context_is_told_with_the_flags_that_help(words: str) -> None:
    (refused,) = run(Server(lambda body: (400, {"error": {"message": words}})), make_samples())
    assert refused.status is Status.FAILED
    told = refused.metadata["error"]
    assert words in told
    assert "--rollout-max-context-len N keeps" in told
    assert told.endswith("--rollout-max-prompt-len N leaves out prompts of more than N tokens")


def test_a_response_that_has_no_room_left_is_truncated_without_a_request() -> None:
    server = Server(answered)
    full = Sample(index=0, tokens=[0] * 9, response_length=8)
    (sample,) = run(server, [full])
    assert sample.status is Status.TRUNCATED
    assert not server.bodies


def test_after_an_abort_nothing_new_starts() -> None:
    server = Server(answered)
    (sample,) = run(server, make_samples(), abort_first=True)
    assert sample.status is Status.ABORTED
    assert not server.bodies
    assert server.num_aborts == 1


CUSTOM = """
import asyncio
from slime_sglang import generate_single

async def twice(args, sample, sampling_params):
    await generate_single(args, sample, {"max_new_tokens": 1, "temperature": args.second})
    await generate_single(args, sample)
    return sample

async def stuck(args, sample, sampling_params):
    await asyncio.sleep(60)

async def gives_up(args, sample, sampling_params):
    tool = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0.01)
    tool.cancel()
    await tool

async def broken(args, sample, sampling_params):
    raise KeyError(sampling_params["max_new_tokens"])
"""


def test_a_custom_function_asks_the_engine_as_often_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    server = Server(answered)
    (sample,) = run(server, make_samples(), custom_generate=f"{path}:twice", flat={"second": 0.25})
    first, second = (body["sampling_params"] for body in server.bodies)
    assert (first["max_new_tokens"], first["temperature"]) == (1, 0.25)
    assert (second["max_new_tokens"], second["temperature"]) == (7, 1.0)
    assert server.bodies[1]["input_ids"] == [1, 2, 7]
    assert sample.response_length == 2


def test_a_custom_function_that_does_not_return_fails_only_its_sample(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    stuck, fine = make_samples(2)
    stuck.generate_function_path = f"{path}:stuck"
    failed, other = run(Server(answered), [stuck, fine], custom_timeout_s=0.2)
    assert failed.status is Status.FAILED
    problem = "stuck: TimeoutError: not done after 0.2 s (--custom-generate-timeout-s)"
    assert failed.metadata["error"].endswith(problem)
    assert other.response_length == 1


def test_a_custom_function_that_raises_fails_only_its_sample(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    broken, fine = make_samples(2)
    broken.generate_function_path = f"{path}:broken"
    failed, other = run(Server(answered), [broken, fine])
    assert failed.status is Status.FAILED
    assert failed.metadata["error"].endswith("KeyError: 8")
    assert failed.metadata["traceback"].startswith(f'  File "{path}", line ')
    assert other.status is Status.COMPLETED


def test_a_custom_function_that_cancels_what_it_waits_for_fails_only_its_sample(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    cancelled, fine = make_samples(2)
    cancelled.generate_function_path = f"{path}:gives_up"
    failed, other = run(Server(answered), [cancelled, fine])
    assert failed.status is Status.FAILED
    assert (
        "gives_up: WorkCancelledError: a task that it awaited was can" in failed.metadata["error"]
    )
    assert other.status is Status.COMPLETED


def test_a_request_body_is_plain_json() -> None:
    server = Server(answered)
    run(server, make_samples())
    json.dumps(server.bodies[0])


class _Fleet:
    """Engines that are being repaired until the sixth question."""

    urls: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.asked = 0

    def may_recover(self, since: float) -> bool:
        self.asked += 1
        return self.asked < 6


def test_requests_outlast_the_repair_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_requests, "_RETRY_S", 0.01)
    replies = [(503, {"error": "no workers"})] * 5
    server = Server(lambda body: replies.pop() if replies else answered(body))
    (sample,) = run(server, [Sample(index=0, tokens=[1, 2])], fleet=_Fleet())
    assert sample.status is Status.COMPLETED
    assert len(server.bodies) == 6
    assert all(body == server.bodies[0] for body in server.bodies)


def test_nothing_is_sent_again_once_the_rollout_has_enough() -> None:
    server = Server(lambda body: (503, {"error": "no workers"}))

    async def aborted_meanwhile(generation: Generation, sample: Sample) -> Any:
        task = asyncio.create_task(generation(sample))
        while not server.bodies or server.at_once:
            await asyncio.sleep(0.005)
        await generation.abort()  # while it waits to try again
        return await task

    (sample,) = run(server, make_samples(), call=aborted_meanwhile)
    assert sample.status is Status.ABORTED
    assert len(server.bodies) == 1


def test_what_was_written_before_a_publish_is_kept_when_the_rollout_ends_before_the_rest() -> None:
    row = {"output_token_logprobs": [[-0.5, 7, None]], "finish_reason": {"type": "abort"}}
    replies = [(200, {"text": "h", "meta_info": {**row, "weight_version": "3"}})]
    server = Server(lambda body: replies.pop() if replies else (503, {"error": "no workers"}))

    async def aborted_meanwhile(generation: Generation, sample: Sample) -> Any:
        task = asyncio.create_task(generation(sample))
        while len(server.bodies) < 2 or server.at_once:
            await asyncio.sleep(0.005)
        await generation.abort()  # while it waits to try again
        return await task

    (sample,) = run(server, make_samples(), call=aborted_meanwhile)
    assert (sample.status, sample.tokens) == (Status.ABORTED, [1, 2, 7])


def test_an_engine_that_aborts_all_it_is_asked_is_not_asked_for_ever() -> None:
    def abort(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        meta = {"output_token_logprobs": [], "finish_reason": {"type": "abort"}}
        return 200, {"text": "", "meta_info": meta}

    with pytest.raises(EngineError, match=r"aborted sample 0 again and again for 0\.3 s"):
        run(Server(abort), make_samples(), timeout_s=0.3)


class Verbatim(Server):
    """Says the texts that it was given, and then what an engine says."""

    def __init__(self, *texts: str) -> None:
        super().__init__(answered)
        self._texts = [*texts]

    async def generate(self, request: web.Request) -> web.Response:
        whole = await super().generate(request)
        if not self._texts:
            return whole
        return web.Response(text=self._texts.pop(0), content_type="application/json")


DAMAGED = [
    ('{"text": "h", "meta_info": {"finish', "it is no JSON"),
    ("", "it is no JSON"),
    ("[1, 2]", "it has no `meta_info`"),
    ('{"error": "overloaded"}', 'it has no `meta_info`: {"error": "overloaded"}'),
    ('{"meta_info": null}', "it has no `meta_info`"),
    ('{"meta_info": {"finish_reason": "stop"}}', "its `finish_reason` is no object"),
    ('{"meta_info": {"output_token_logprobs": [7, 8]}}', "its `output_token_logprobs` are not"),
    ('{"meta_info": {"output_token_logprobs": [[null, 7]]}}', "its `output_token_logprobs` are"),
]


@pytest.mark.parametrize(("text", "problem"), DAMAGED)
def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_shown(
    text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_requests, "_RETRY_S", 0.01)
    (sample,) = run(server := Verbatim(text), make_samples())
    assert (sample.status, sample.tokens) == (Status.COMPLETED, [1, 2, 7])
    assert len(server.bodies) == 2
    with pytest.raises(EngineError) as raised:
        run(Verbatim(*[text] * 3), make_samples())
    assert "/generate failed 3 times" in str(raised.value)
    assert f"none of SGLang's /generate: {problem}" in str(raised.value)


class Deaf(Server):
    """Goes on with its requests until the test ends, whatever it is told."""

    def __init__(self, abort_status: int = 200) -> None:
        super().__init__(answered)
        self.over = asyncio.Event()
        self._abort_status = abort_status

    async def generate(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        await self.over.wait()
        return web.json_response(answered({})[1])

    async def abort(self, request: web.Request) -> web.Response:
        self.num_aborts += 1
        return web.Response(status=self._abort_status)


@pytest.mark.parametrize("recovers", [False, True])
def test_an_engine_that_goes_on_in_spite_of_an_abort_ends_the_run_unless_it_is_being_replaced(
    recovers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_requests, "_ABORTED_S", 0.2)
    server = Deaf(abort_status=500)
    found: list[str] = []

    async def abort_for_a_while(generation: Generation, sample: Sample) -> Any:
        task = asyncio.create_task(generation(sample))
        while not server.bodies:
            await asyncio.sleep(0.005)
        try:
            for _ in range(10):
                await generation.abort()
                await asyncio.sleep(0.05)
        except EngineError as error:
            found.append(str(error))
        server.over.set()
        return await task

    fleet = SimpleNamespace(urls=(), may_recover=lambda since: recovers)
    (sample,) = run(
        server, make_samples(), call=abort_for_a_while, fleet=fleet if recovers else None
    )
    assert sample.response_length == 1
    if recovers:
        assert found == []
    else:
        assert "still run 0.2 s after the engines were told to abort them: 1; http" in found[0]
        assert found[0].endswith("/abort_request answered 500")
        assert server.num_aborts >= 2
