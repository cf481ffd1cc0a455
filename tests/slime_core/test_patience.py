from types import SimpleNamespace

import pytest
from slime_core.patience import patient


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
