import pytest
from slime_core.config.arguments import by_name, parse
from slime_core.config.evaluation import EvalConfig
from slime_core.config.flags import Flag, flags_of
from slime_core.config.rollout import SamplingConfig
from slime_core.config.table import flags_from_table

NAMED = by_name([*flags_of(SamplingConfig), *flags_of(EvalConfig)])


def values(line: str):
    parsed = parse(line.split(), NAMED)
    assert parsed.problems == []
    return {dest: given.value for (_, dest), given in parsed.given.items()}


def problems(line: str):
    return parse(line.split(), NAMED).problems


def test_values_are_converted():
    line = "--rollout-temperature 0.7 --rollout-stop a b --rollout-top-k=-1"
    assert values(line) == {
        "rollout_temperature": 0.7,
        "rollout_stop": ("a", "b"),
        "rollout_top_k": -1,
    }


def test_a_negative_number_is_a_value():
    assert values("--rollout-top-k -1") == {"rollout_top_k": -1}


def test_the_last_of_equal_flags_counts():
    assert values("--rollout-top-p 0.5 --rollout-top-p 0.9") == {"rollout_top_p": 0.9}


def test_flags_that_collect_keep_every_occurrence():
    sets = values("--eval-prompt-data a a.jsonl --eval-prompt-data b b.jsonl c c.jsonl")
    assert sets["eval_prompt_data"] == (("a", "a.jsonl"), ("b", "b.jsonl"), ("c", "c.jsonl"))


def test_every_problem_is_reported_at_once():
    line = "--rollout-temprature 1 --rollout-top-p x --rollout-stop --rollout-temperature 0 stray"
    assert problems(line) == [
        "unknown flag --rollout-temprature (did you mean --rollout-temperature?)",
        "--rollout-top-p expects float, got 'x'; allowed: > 0 and <= 1",
        "--rollout-stop expects at least one str value, got none",
        "--rollout-temperature must be > 0, got 0.0",
        "unexpected word 'stray': flags start with --",
    ]


def test_abbreviations_are_unknown():
    assert problems("--rollout-temp 1") == [
        "unknown flag --rollout-temp (did you mean --rollout-temperature?)"
    ]


def test_underscores_get_the_spelling_with_dashes():
    assert problems("--rollout_top_p 1") == [
        "unknown flag --rollout_top_p (did you mean --rollout-top-p?)"
    ]


def test_a_switch_takes_no_value():
    assert problems("--rollout-skip-special-tokens=1") == [
        "--rollout-skip-special-tokens expects no value, got '1'"
    ]
    assert problems("--rollout-skip-special-tokens true") == [
        "unexpected word 'true': flags start with --"
    ]


def test_a_flag_without_its_value():
    assert problems("--rollout-top-p --rollout-stop x") == [
        "--rollout-top-p expects one float value, got none; allowed: > 0 and <= 1"
    ]


def test_what_other_programs_call_a_flag_or_a_device_leads_to_its_name_here():
    named = by_name([Flag("x", n[2:], (n,)) for n in ("--lr", "--te-rng-tracker")])
    (told,) = parse(["--learning-rate", "1"], named).problems
    assert told == "unknown flag --learning-rate (did you mean --lr?)"
    named = by_name([Flag("x", "device", ("--device",), choices=("auto", "cpu", "cuda"))])
    (told,) = parse(["--device", "gpu"], named).problems
    assert told.endswith("got 'gpu' (did you mean cuda?)")


def test_choices_are_listed_with_the_nearest():
    named = by_name([Flag("x", "m", ("--mode",), choices=("grpo", "gspo"))])
    assert parse(["--mode", "grp"], named).problems == [
        "--mode must be one of grpo, gspo, got 'grp' (did you mean grpo?)"
    ]


def test_a_spelling_has_one_owner():
    with pytest.raises(AssertionError, match="--mode belongs to x and y"):
        by_name([Flag("x", "m", ("--mode",)), Flag("y", "m", ("--mode",))])


TABLE = """[
{"names": ["--size"], "dest": "size", "type": "size"},
{"names": ["--x"], "negatives": ["--no-x"], "dest": "x", "arity": "none", "default": true},
{"names": ["--off"], "dest": "on", "arity": "none", "const": false, "default": true},
{"names": ["--pair"], "dest": "pair", "type": "int", "arity": 2},
{"names": ["--maybe"], "dest": "maybe", "arity": "optional", "const": "yes"}
]"""


def test_tables_of_foreign_flags_are_read_with_a_prefix():
    named = by_name(flags_from_table(TABLE, "engine", prefix="engine"))
    line = "--engine-size 4Ki --engine-no-x --engine-off --engine-pair 1 2 --engine-maybe"
    parsed = parse(line.split(), named)
    assert parsed.problems == []
    assert {dest: g.value for (_, dest), g in parsed.given.items()} == {
        "size": 4096, "x": False, "on": False, "pair": (1, 2), "maybe": "yes",
    }  # fmt: skip
