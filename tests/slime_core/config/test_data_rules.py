from slime_core.config.draft import Draft, Facts
from slime_core.config.rules.data import columns, length_of_run


def draft(**given: int) -> Draft:
    made = Draft()
    for name in ("num_rollout", "num_epoch"):
        made.own.put(name, given.get(name), "command line" if name in given else "default")
    made.own.put("rollout_batch_size", 4, "default")
    return made


def test_passes_over_the_prompts_have_no_effect_beside_a_number_of_iterations_and_it_is_said():
    made = draft(num_rollout=3, num_epoch=2)
    length_of_run(made, Facts(num_prompts=8))
    assert made["num_rollout"] == 3
    assert made.notices == ["--num-epoch 2 has no effect: --num-rollout 3 says how long the run is"]


def test_passes_over_the_prompts_alone_give_the_number_of_iterations():
    made = draft(num_epoch=2)
    length_of_run(made, Facts(num_prompts=8))
    assert (made["num_rollout"], made.notices) == (4, [])


def test_the_columns_that_are_read_are_told_beside_a_default_and_change_nothing():
    made = Draft()
    made.own.put("input_key", "input", "default")
    made.own.put("label_key", "gold", "command line")
    columns(made, Facts(prompt_columns={"input_key": "prompt", "label_key": "gold"}))
    assert made.own.sources["input_key"] == "default; the rows' column is prompt"
    assert made.own.sources["label_key"] == "command line"
    assert (made["input_key"], made.given("input_key")) == ("input", False)
