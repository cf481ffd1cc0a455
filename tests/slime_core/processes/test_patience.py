import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from slime_core.processes.patience import Starting, StillbornError, patient


def failing(times: int) -> SimpleNamespace:
    asked: list[int] = []

    def ask(value: int) -> int:
        asked.append(value)
        if len(asked) <= times:
            raise LookupError("not yet")
        return value

    return SimpleNamespace(ask=ask, asked=asked)


def test_an_answer_that_comes_late_is_waited_for():
    module = failing(2)
    own = module.ask
    with patient(module, "ask", LookupError, 60.0):
        assert module.ask(7) == 7
    assert module.asked == [7, 7, 7]
    assert module.ask is own


def test_patience_ends_and_is_for_one_error_only():
    module = failing(10**6)
    with patient(module, "ask", LookupError, 0.1), pytest.raises(LookupError):
        module.ask(1)
    with patient(module, "ask", ValueError, 60.0), pytest.raises(LookupError):
        module.ask(2)


def test_a_library_without_that_question_is_left_alone():
    with patient(SimpleNamespace(), "ask", LookupError, 60.0):
        pass


def test_who_has_ended_is_not_waited_for_and_the_message_names_its_log():
    def start_hub(code: int, *, stderr_filepath: str) -> SimpleNamespace:
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        process.wait(timeout=30)
        return SimpleNamespace(process=process)

    starting, module, begin = Starting(), failing(10**6), time.monotonic()
    starting.seen(start_hub)(7, stderr_filepath="/logs/hub.err")
    expected = r"hub has ended with exit code 7; its log is /logs/hub\.err and the \.out beside it"
    with (
        patient(module, "ask", LookupError, 60.0, starting.check),
        pytest.raises(StillbornError, match=expected),
    ):
        module.ask(1)
    assert len(module.asked) == 1
    assert time.monotonic() - begin < 30


def test_who_is_alive_is_waited_for():
    process = SimpleNamespace(poll=lambda: None)
    starting, module = Starting(), failing(2)
    starting.seen(lambda: SimpleNamespace(process=process))()
    with patient(module, "ask", LookupError, 60.0, starting.check):
        assert module.ask(7) == 7
