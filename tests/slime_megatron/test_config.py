import pytest
from slime_megatron.config import command_line, megatron_flags, same


def test_a_pattern_of_layers_equals_its_text():
    assert same("([0]*3+[1]*2)", [0, 0, 0, 1, 1])
    assert same((0, 1), "[0, 1]")
    assert same("1", 1)
    assert not same("[0]*2", [0])


def test_what_is_no_pattern_is_compared_as_it_is_and_never_run():
    assert same("[print()]", "[print()]")
    assert not same("[print()]", [None])


def test_a_list_is_one_word_where_the_flag_takes_one():
    words = command_line({"moe_layer_freq": [0, 1], "hidden_size": 64}, megatron_flags())
    assert words == ("--moe-layer-freq", "[0, 1]", "--hidden-size", "64")


def test_what_no_flag_can_say_is_an_error():
    with pytest.raises(ValueError, match="no flag of Megatron sets swiglu to 'maybe'"):
        command_line({"swiglu": "maybe"}, [f for f in megatron_flags() if f.dest == "swiglu"])
