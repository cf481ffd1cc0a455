"""What is said of errors of code that a process was given."""

import functools
import pickle
import re
import sys
from types import ModuleType

import pytest
from slime_core.errors import DataError, SampleError
from slime_core.plugins.mistakes import Held, MistakeError, blamed_on, told


class Broken:
    """Raises what it is told to, at once or when it is called."""

    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error

    def fail(self, error: Exception) -> None:
        raise error

    def answer(self, *, plus: int) -> int:
        return 1 + plus


def test_an_object_is_called_by_name() -> None:
    assert Held(Broken).call("answer", (), {"plus": 2}) == 3


def test_whatever_is_called_says_why_the_object_could_not_be_made() -> None:
    held = Held(functools.partial(Broken, ValueError("no chat template")))
    for _ in range(2):
        with pytest.raises(MistakeError, match=r"^ValueError: no chat template\n.*test_mistakes"):
            held.call("answer", (), {})


def test_a_clear_error_while_an_object_is_made_stays_one_line() -> None:
    held = Held(functools.partial(Broken, DataError("train.jsonl:500: is not JSON")))
    with pytest.raises(DataError) as raised:
        held.call("answer", (), {})
    assert told(raised.value) == "train.jsonl:500: is not JSON"


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), OSError("reset by peer")])
def test_errors_of_devices_and_connections_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        Held(Broken).call("fail", (error,), {})
    assert raised.value is error


def test_any_other_error_of_a_call_is_told_from_the_users_first_line_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(MistakeError) as raised:
        Held(Broken).call("fail", (TypeError("2 + None"),), {})
    first, second = str(raised.value).splitlines()[:2]
    assert first == "TypeError: 2 + None"
    assert "test_mistakes.py" in second
    assert "mistakes.py" not in second.replace("test_mistakes.py", "")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert "`fail` failed" in caplog.text


def test_where_an_error_was_raised_is_told_while_other_threads_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fullmatch, names = re.fullmatch, iter(range(10**6))

    def imported_meanwhile(*given: str) -> re.Match[str] | None:
        name = f"imported_meanwhile_{next(names)}"
        sys.modules[name] = ModuleType(name)
        return fullmatch(*given)

    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(re, "fullmatch", imported_meanwhile)
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert "test_mistakes.py" in told(raised.value)


@pytest.mark.parametrize("makers", ["", "--custom-rm-path m.py:f"])
def test_a_wrong_sample_leads_to_the_functions_that_may_have_filled_it(makers):
    with pytest.raises(SampleError) as caught, blamed_on(makers):
        raise SampleError("bad")
    assert str(caught.value) == (f"bad; look at {makers}" if makers else "bad")
