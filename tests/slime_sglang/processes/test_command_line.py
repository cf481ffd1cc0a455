from slime_sglang.processes.command_line import to_words


def test_values_become_the_words_of_sglangs_command_line() -> None:
    values = {
        "context_length": 512,
        "disable_radix_cache": True,
        "enable_metrics": False,
        "quantization": None,
        "gc_threshold": (700, 10),
        "default_chat_template_kwargs": {"enable_thinking": False},
        "dcp_replicate_q_proj": False,
    }
    assert to_words(values, "flags") == [
        "--context-length", "512",
        "--disable-radix-cache",
        "--gc-threshold", "700", "10",
        "--default-chat-template-kwargs", '{"enable_thinking": false}',
        "--no-dcp-replicate-q-proj",
    ]  # fmt: skip


def test_what_only_a_run_sets_is_spelled_after_its_name() -> None:
    assert to_words({"port": 80, "made_up_switch": True}, "router_flags") == [
        "--port", "80", "--made-up-switch",
    ]  # fmt: skip
