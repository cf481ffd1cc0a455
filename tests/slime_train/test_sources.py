from slime_train.sources import draft_of, read_sources


def yaml(tmp_path, text, line=""):
    file = tmp_path / "more.yaml"
    file.write_text(text)
    return read_sources(f"--custom-config-path {file} {line}".split())


def test_yaml_wins_over_the_command_line(tmp_path):
    raw = yaml(tmp_path, "rollout_temperature: 0.5\nlr: 0.001\n", "--rollout-temperature 0.9")
    assert raw.value("rollout_temperature") == 0.5
    assert raw.given["megatron", "lr"].value == 0.001
    assert raw.sources["megatron", "lr"].endswith("more.yaml")
    assert raw.problems == []


def test_yaml_takes_lists_booleans_and_objects(tmp_path):
    text = """
rollout_stop: [a, b]
colocate: true
normalize_rewards: false
eval_prompt_data: {gsm8k: g.jsonl, aime: a.jsonl}
apply_chat_template_kwargs: {enable_thinking: false}
sglang_mem_fraction_static: 0.5
"""
    raw = yaml(tmp_path, text)
    assert raw.problems == []
    assert raw.value("rollout_stop") == ("a", "b")
    assert raw.value("colocate") is True
    assert raw.value("normalize_rewards") is False
    assert raw.value("eval_prompt_data") == (("gsm8k", "g.jsonl"), ("aime", "a.jsonl"))
    assert raw.value("apply_chat_template_kwargs") == {"enable_thinking": False}
    assert raw.given["sglang", "mem_fraction_static"].value == 0.5


def test_unknown_keys_of_yaml_are_the_users_own(tmp_path):
    raw = yaml(tmp_path, "tool_budget: 3\n")
    assert raw.extra == {"tool_budget": 3}
    assert raw.problems == []


def test_yaml_keys_may_be_megatrons_destinations(tmp_path):
    raw = yaml(tmp_path, "add_bias_linear: false\nlayernorm_epsilon: 1.0e-5\n")
    assert raw.given["megatron", "add_bias_linear"].value is False
    assert raw.given["megatron", "layernorm_epsilon"].value == 1e-5
    assert raw.problems == []


SLIPS = {
    "rollout_temprature": " (did you mean rollout_temperature?)",
    "sglang_mem_fraction_statc": " (did you mean sglang_mem_fraction_static?)",
    "learning_rate": " (did you mean lr?)",
    "LR": " (did you mean lr?)",
    "tis_upper_bound": " (did you mean tis_clip?)",
    "use_critic": " (there is a critic with --advantage-estimator ppo: give that)",
    "search_url": "",
    "max_tool_calls": "",
    "sandbox_timeout_s": "",
}


def test_a_key_that_is_nearly_a_flag_is_known_from_the_users_own(tmp_path):
    raw = yaml(tmp_path, "".join(f"{key}: 1\n" for key in SLIPS))
    assert raw.problems == []
    assert draft_of(raw).meant == SLIPS


def test_a_key_may_be_spelled_as_on_the_command_line_or_as_what_it_sets(tmp_path):
    for text, dest, value in (
        ("--lr: 1.0e-5", "lr", 1e-5),
        ("rollout-temperature: 2", "rollout_temperature", 2.0),
        ("disable_rewards_normalization: true", "normalize_rewards", False),
        ("disable_rewards_normalization: false", "normalize_rewards", True),
        ("rewards_normalization: false", "normalize_rewards", False),
        ("normalize_rewards: false", "normalize_rewards", False),
        ("no_offload_train: true", "offload_train", False),
        ("offload_train: false", "offload_train", False),
        ("disable_bias_linear: true", "add_bias_linear", False),
        ("add_bias_linear: false", "add_bias_linear", False),
        ("no_load_optim: true", "no_load_optim", True),
        ("sglang_enable_breakable_cuda_graph: true", "cuda_graph_backend_prefill", "breakable"),
    ):
        raw = yaml(tmp_path, text)
        found = {name: given.value for (_, name), given in raw.given.items()}
        assert (raw.problems, found.get(dest)) == ([], value), text
    raw = yaml(tmp_path, "sglang_enable_breakable_cuda_graph: false")
    assert "expects true, got False: leave it out" in raw.problems[0]


def test_bad_values_in_yaml_name_file_and_key(tmp_path):
    raw = yaml(tmp_path, "rollout_temperature: hot\ncolocate: 7\nlog_multi_turn: true\n")
    text = "\n".join(raw.problems)
    assert "more.yaml: rollout_temperature: --rollout-temperature expects float, got 'hot'" in text
    assert "--colocate expects true or false, got 7" in text
    assert "log_multi_turn: true: not there yet" in text


def test_a_missing_or_broken_file_is_a_problem(tmp_path):
    assert "cannot be read" in read_sources(["--custom-config-path", "/none.yaml"]).problems[0]
    assert "must hold a mapping" in yaml(tmp_path, "- a\n").problems[0]
