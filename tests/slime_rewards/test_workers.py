import asyncio
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from slime_core.errors import PluginError
from slime_core.processes import events
from slime_rewards.sandbox import Limits
from slime_rewards.verdict import Outcome, Question
from slime_rewards.workers import Workers

DEADLINE = 1.5
HOSTILE = """
import ctypes, json, os, re, signal, sys, threading, time


def grade(response, label, metadata):
    return HOW[response]()


def loop():
    while True:
        pass


def regex():
    return float(bool(re.match(r"(a+)+$", "a" * 60 + "!")))


def fork_bomb():
    while True:
        os.fork()


def shielded_forks():
    while True:
        try:
            os.fork()
        except OSError:
            pass


def allocate():
    return float(len(bytearray(10 << 30)))


def segfault():
    return ctypes.string_at(0)


def leave():
    os._exit(0)


def shout():
    for _ in range(8):
        sys.stdout.write("x" * (1 << 20))
        sys.stdout.flush()
        os.write(2, b"y" * (1 << 20))
    return 1.0


def sleep_in_c():
    ctypes.CDLL(None).sleep(600)


def deaf():
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    loop()


def kill_parent():
    os.kill(os.getppid(), signal.SIGKILL)


def kill_group():
    os.killpg(0, signal.SIGKILL)


def fill_disk():
    with open(os.environ.get("TMPDIR", "/tmp") + "/slime-fill", "wb") as stream:
        os.unlink(stream.name)
        for _ in range(64):
            stream.write(b"x" * (1 << 20))


def linger():
    threading.Thread(target=loop, daemon=False).start()
    return 1.0


def recurse():
    return recurse()


def nan():
    return float("nan")


def huge():
    return {"score": 1.0, "note": "x" * (4 << 20)}


HOW = {name: value for name, value in list(globals().items()) if callable(value)}
HOW["one"] = lambda: 1.0
HOW["slow"] = lambda: time.sleep(3.0) or 1.0
HOW["words"] = lambda: "good"
HOW["raise"] = lambda: 1 / 0
HOW["exit"] = lambda: sys.exit(3)
HOW["unprintable"] = lambda: {"score": object()}
"""
ENDS = {
    "loop": (Outcome.ABSTENTION, "not decided within 1.5 s"),
    "regex": (Outcome.ABSTENTION, "not decided within 1.5 s"),
    "fork_bomb": (Outcome.ERROR, "Operation not permitted"),
    "shielded_forks": (Outcome.ABSTENTION, "not decided"),
    "allocate": (Outcome.ERROR, "memory is limited"),
    "segfault": (Outcome.ERROR, "was killed by SIGSEGV"),
    "leave": (Outcome.ERROR, "ended with exit code 0"),
    "shout": (Outcome.VALUE, None),
    "sleep_in_c": (Outcome.ABSTENTION, "not decided"),
    "deaf": (Outcome.ABSTENTION, "not decided"),
    "kill_parent": (Outcome.ERROR, "Operation not permitted"),
    "kill_group": (Outcome.ERROR, "Operation not permitted"),
    "fill_disk": (Outcome.ERROR, "File too large"),
    "linger": (Outcome.VALUE, None),
    "recurse": (Outcome.ERROR, "RecursionError"),
    "nan": (Outcome.ERROR, "rewards are finite"),
    "huge": (Outcome.ERROR, "the grader's answer has"),
    "words": (Outcome.ERROR, "returned 'good', of type str"),
    "raise": (Outcome.ERROR, "ZeroDivisionError"),
    "exit": (Outcome.ERROR, "SystemExit: 3"),
    "unprintable": (Outcome.ERROR, "not JSON serializable"),
}


@pytest.fixture(scope="module")
def grader(tmp_path_factory):
    path = tmp_path_factory.mktemp("graders") / "hostile.py"
    path.write_text(HOSTILE)
    return f"{path}:grade"


@pytest.fixture(scope="module")
def workers():
    made = Workers(num_workers=2, time_limit_s=DEADLINE, limits=Limits(memory_bytes=2 << 30))
    assert ask(made, algebra()).reward == 1.0  # the start of the first process is not measured
    yield made
    made.close()


def algebra():
    return Question(grader="math", response=r"\boxed{(x+1)^2}", label="x^2+2x+1", metadata={})


def hostile(grader, how):
    return Question(grader=grader, response=how, metadata={})


def ask(workers, *questions):
    async def all_of_them():
        return await asyncio.gather(*(workers.ask(question) for question in questions))

    verdicts = asyncio.run(all_of_them())
    return verdicts if len(verdicts) > 1 else verdicts[0]


@pytest.mark.parametrize("how", ENDS)
def test_a_hostile_grader_costs_its_deadline_and_no_other_reward(workers, grader, how):
    start = time.monotonic()
    other, verdict, another = ask(workers, algebra(), hostile(grader, how), algebra())
    assert time.monotonic() - start < DEADLINE + 1
    outcome, message = ENDS[how]
    assert (verdict.outcome, verdict.reward is None) == (outcome, outcome is not Outcome.VALUE)
    assert verdict.error == message or message in verdict.error
    assert (other.reward, another.reward) == (1.0, 1.0)


def test_many_hostile_graders_at_once_delay_a_rollout_by_one_deadline(workers, grader):
    questions = [q for how in ENDS for q in (hostile(grader, how), algebra())]
    start = time.monotonic()
    verdicts = ask(workers, *questions)
    assert time.monotonic() - start < DEADLINE + 1
    assert [v.reward for v in verdicts[1::2]] == [1.0] * len(ENDS)
    assert [v.outcome for v in verdicts[::2]] == [outcome for outcome, _ in ENDS.values()]


def test_the_event_loop_goes_on_while_a_grader_is_stuck(workers, grader):
    async def beat():
        task = asyncio.ensure_future(workers.ask(hostile(grader, "loop")))
        gaps, last = [], time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        return max(gaps)

    assert asyncio.run(beat()) < 0.5


def test_a_hostile_expression_is_given_up_on(workers):
    tower = Question(
        grader="math", response=r"\boxed{9^{9^{9^{9}}} + x}", label="x + 1", metadata={}
    )
    verdict, right = ask(workers, tower, algebra())
    assert verdict.outcome is not Outcome.VALUE or verdict.reward == 0.0
    assert right.reward == 1.0


def test_a_label_that_is_missing_is_an_error(workers):
    verdict = ask(workers, Question(grader="math", response="4", metadata={}))
    assert verdict.outcome is Outcome.ERROR
    assert "--label-key" in verdict.error


@pytest.mark.parametrize("grader", ["math", "dapo", "deepscaler", "f1", "exact_match"])
def test_a_label_that_is_empty_is_an_error_not_a_reward_for_saying_nothing(workers, grader):
    verdict = ask(workers, Question(grader=grader, response="", label=" ", metadata={}))
    assert verdict.outcome is Outcome.ERROR
    assert "an empty label" in verdict.error


def test_workers_end_with_their_owner(grader):
    made = Workers(num_workers=1, time_limit_s=DEADLINE)
    assert ask(made, hostile(grader, "one")).reward == 1.0
    made.close()
    made.close()
    assert made._nursery._process is None


def test_the_process_that_starts_workers_is_started_again(grader):
    made = Workers(num_workers=1, time_limit_s=DEADLINE)
    try:
        assert ask(made, hostile(grader, "one")).reward == 1.0
        made._nursery._process.kill()
        made._nursery._process.wait()
        time.sleep(0.1)  # its workers end with it
        assert ask(made, hostile(grader, "one")).reward == 1.0
    finally:
        made.close()


def test_a_process_with_thousands_of_connections_still_gets_answers(grader):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    made = Workers(num_workers=1, time_limit_s=DEADLINE)
    try:
        assert max(opened) > 1024
        assert [ask(made, hostile(grader, "one")).reward for _ in range(2)] == [1.0, 1.0]
    finally:
        made.close()
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_own", [])
    events.keep_in(tmp_path / "events.jsonl")
    return lambda: events.read_events(tmp_path / "events.jsonl")


@pytest.mark.parametrize(("number", "how"), [(signal.SIGSTOP, "hang"), (signal.SIGKILL, "exit")])
def test_a_worker_that_is_lost_is_replaced_and_said_to_be(grader, recorded, number, how):
    made = Workers(num_workers=1, time_limit_s=DEADLINE)
    try:
        assert ask(made, hostile(grader, "one")).reward == 1.0
        victim = made._idle[0].pid
        os.kill(victim, number)
        assert ask(made, hostile(grader, "one")).reward == 1.0
        assert not Path(f"/proc/{victim}").exists()
    finally:
        made.close()
    found = recorded()
    assert [event["event"] for event in found] == ["process", "lost", "process", "recovered"]
    assert {event["kind"] for event in found} == {"reward_worker"}
    assert found[0]["pid"] == found[1]["pid_lost"] == victim
    assert found[1]["how"] == how


def test_a_worker_killed_while_it_grades_costs_no_reward(grader, recorded):
    made = Workers(num_workers=1, time_limit_s=60.0)
    try:
        assert ask(made, hostile(grader, "one")).reward == 1.0
        busy = made.submit(hostile(grader, "slow"))
        time.sleep(0.5)
        os.kill(made_by(recorded), signal.SIGKILL)
        assert busy.result(120).reward == 1.0
    finally:
        made.close()
    assert [e["how"] for e in recorded() if e["event"] == "lost"] == ["exit"]


def made_by(recorded):
    """The process that was started last."""
    return [event["pid"] for event in recorded() if event["event"] == "process"][-1]


def test_a_grader_that_is_not_there_is_told_before_any_process_starts():
    unused = Workers()
    with pytest.raises(PluginError, match=r"no grader 'mth' \(did you mean math\?\): there"):
        unused.submit(Question(grader="mth", response="4", label="4", metadata={}))
    unused.close()
