import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from slime_core.errors import EngineError
from slime_core.types import Sample, Status
from slime_sglang.rollout.teacher import Teacher, endpoint

Reply = Callable[[dict[str, Any]], tuple[int, Any]]


def judged(body: dict[str, Any]) -> tuple[int, Any]:
    """As SGLang: the first entry has no probability; -0.25 times the token for the others."""
    start = body["logprob_start_len"]
    rows = [[-i / 4, i, None] for i in body["input_ids"][start:]]
    rows[0][0] = None
    return 200, {"text": "", "meta_info": {"input_token_logprobs": rows}}


def ask(samples: Sequence[Sample], reply: Reply = judged, **options: Any) -> list[dict[str, Any]]:
    """Have ``samples`` judged; the requests that were made about them."""
    bodies: list[dict[str, Any]] = []

    async def generate(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        status, value = reply(bodies[-1])
        if value is None:
            await asyncio.sleep(1)
        return web.json_response(value, status=status)

    async def scenario() -> None:
        app = web.Application()
        app.router.add_post("/generate", generate)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        teacher = Teacher(
            f"http://127.0.0.1:{runner.addresses[0][1]}", **{"retry_s": 0.01, **options}
        )
        try:
            await teacher(samples)
        finally:
            await teacher.close()
            await runner.cleanup()

    asyncio.run(scenario())
    return [body for body in bodies if "token_ids_logprob" not in body]


def sample(tokens: Sequence[int] = (1, 2, 3, 8), response: int = 2, **changes: Any) -> Sample:
    fields = {"index": 5, "status": Status.COMPLETED, **changes}
    return Sample(tokens=list(tokens), response_length=response, **fields)


def test_response_tokens_get_the_teachers_log_probabilities() -> None:
    one, other = sample(), sample((4, 5), 1)
    bodies = ask([one, other])
    assert (one.teacher_log_probs, other.teacher_log_probs) == ([-0.75, -2.0], [-1.25])
    body = next(body for body in bodies if len(body["input_ids"]) == 4)
    assert body == {
        "input_ids": [1, 2, 3, 8],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 1,
    }


def test_a_teacher_is_asked_about_each_new_largest_token_before_it_reads_it() -> None:
    asked: list[tuple[list[int], Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append((body["input_ids"], body.get("token_ids_logprob")))
        return judged(body)

    ask([sample((1, 2, 9)), sample((1, 7, 3))], reply)
    assert asked[0] == ([0], [9])
    assert sorted(asked[1:]) == [([1, 2, 9], None), ([1, 7, 3], None)]


def test_what_is_known_broken_or_empty_is_not_asked_about() -> None:
    known, failed, empty = sample(teacher_log_probs=[0.0, 0.0]), sample(), sample((1,), 0)
    failed.status = Status.FAILED
    assert ask([known, failed, empty]) == []
    assert (known.teacher_log_probs, failed.teacher_log_probs) == ([0.0, 0.0], None)
    assert empty.teacher_log_probs == []


def test_failures_do_not_count_while_the_teacher_is_started_again() -> None:
    replies = iter([(503, {})] * 7)
    judged_late = sample()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        return judged(body) if "token_ids_logprob" in body else next(replies, judged(body))

    assert len(ask([judged_late], reply, may_recover=lambda since: True)) == 8
    assert judged_late.teacher_log_probs == [-0.75, -2.0]


def test_a_momentary_failure_is_tried_again() -> None:
    replies = iter([(503, {}), (503, {})])
    judged_late = sample()

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        return judged(body) if "token_ids_logprob" in body else next(replies, judged(body))

    assert len(ask([judged_late], reply)) == 3
    assert judged_late.teacher_log_probs == [-0.75, -2.0]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((503, {}), r"failed 4 times.*503"),
        ((400, {"message": "out of range [0, 4)"}), r"refused sample 5 \(400.*largest token is 8"),
        ((200, {"meta_info": {}}), r"without input_token_logprobs"),
        ((200, []), r"without input_token_logprobs"),
        (
            (200, {"meta_info": {"input_token_logprobs": [3, 8]}}),
            r"input_token_logprobs that are not \[log-probability, token, \.\.\.\]: \[3, 8\]",
        ),
        (
            (200, {"meta_info": {"input_token_logprobs": [[-1.0, 8, None]]}}),
            r"judged 1 tokens \[8\] where sample 5 has 2 response tokens \[3, 8\]",
        ),
        (
            (200, {"meta_info": {"input_token_logprobs": [[-1.0, 3, None], [-1.0, 9, None]]}}),
            r"judged 2 tokens \[3, 9\]",
        ),
        (
            (200, {"meta_info": {"input_token_logprobs": [[-1.0, 3, None], [None, 8, None]]}}),
            r"token 1 \(8\) of sample 5 the log-probability nan.*vocabulary",
        ),
    ],
)
def test_what_a_teacher_does_wrong_is_said_with_the_flag(
    reply: tuple[int, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=rf"--rm-url http://127.0.0.1:\d+ .*{words}"):
        ask([sample()], lambda body: reply)


def test_a_teacher_that_does_not_answer_is_given_up_after_a_while() -> None:
    with pytest.raises(EngineError, match=r"--rm-url .*failed 4 times.*Timeout"):
        ask([sample()], lambda body: (200, None), timeout_s=0.05)


def test_a_teacher_that_is_not_there_is_named() -> None:
    teacher = Teacher("http://127.0.0.1:9/generate", retry_s=0.01)
    with pytest.raises(EngineError, match=r"--rm-url http://127\.0\.0\.1:9/generate failed 4 t"):
        asyncio.run(teacher([sample()]))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://h:1", "http://h:1/generate"),
        ("http://h:1/", "http://h:1/generate"),
        ("h:1", "http://h:1/generate"),
        ("https://h/teacher/generate", "https://h/teacher/generate"),
    ],
)
def test_the_path_of_the_server_may_be_left_out(given: str, found: str) -> None:
    assert endpoint(given) == found
