from types import SimpleNamespace

import pytest
from slime_core.processes.replaced import answer, replaced


def test_what_a_module_has_is_another_within_the_block():
    module = SimpleNamespace(size=1)
    with replaced(module, size=2, color="red"):
        assert vars(module) == {"size": 2}
    assert vars(module) == {"size": 1}


def test_it_is_what_it_was_after_an_error_too():
    module = SimpleNamespace(size=1)
    with pytest.raises(ValueError, match="inside"), replaced(module, size=2):
        raise ValueError("inside")
    assert module.size == 1


def test_a_function_can_be_replaced_by_its_answer():
    module = SimpleNamespace(start=lambda size, *, color: (size, color))
    with replaced(module, start=answer(None)):
        assert module.start(1, color="red") is None
