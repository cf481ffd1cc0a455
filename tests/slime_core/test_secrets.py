import dataclasses
import json

import pytest
from slime_core.config.draft import Draft
from slime_core.config.dump import dump_lines
from slime_core.config.flat import flatten
from slime_core.config.secrets import is_secret, without_secrets, words_without_secrets
from slime_core.config.tracking import TrackingConfig

SECRET = "0123456789abcdef0123456789abcdef01234567"


def test_names_of_secrets_are_told_from_names_of_columns_and_tokens():
    secret = ("wandb_key", "--wandb-key", "sglang_api_key", "admin_api_key", "--hf-token")
    secret += ("ssl_keyfile_password", "aws_secret_access_key", "passwd", "token")
    plain = ("label_key", "input_key", "reward_key", "eos_token", "stop_token_ids", "max_tokens")
    plain += ("loss_mask_type", "num_tokens", "ssl_keyfile", "--max-tokens-per-gpu", "key")
    assert [name for name in secret if not is_secret(name)] == []
    assert [name for name in plain if is_secret(name)] == []


def test_command_lines_keep_all_but_the_secret_in_both_spellings():
    words = ["--wandb-key", SECRET, "--lr", "1", f"--wandb-key={SECRET}", "--label-key", "answer"]
    assert words_without_secrets(words) == [
        *("--wandb-key", "(hidden)", "--lr", "1", "--wandb-key=(hidden)", "--label-key", "answer")
    ]


def test_mappings_within_mappings_are_searched_and_what_is_not_set_stays_so():
    values = {"a": {"api_key": SECRET, "port": 1}, "wandb_key": None, "label_key": "answer"}
    assert without_secrets(values) == {
        "a": {"api_key": "(hidden)", "port": 1},
        "wandb_key": None,
        "label_key": "answer",
    }


def test_the_key_is_in_no_dump_no_repr_and_no_argument_of_plugins():
    config = TrackingConfig(wandb_key=SECRET, wandb_project="sums")
    draft = Draft(extra={"mail_password": SECRET})
    for field in dataclasses.fields(config):
        draft.own.put(field.name, getattr(config, field.name), "--" + field.name)
    text = "\n".join(dump_lines(draft, {"tracking": TrackingConfig}, ["--api-key", SECRET]))
    assert "wandb_key" in text
    assert "'(hidden)'" in text
    assert "'sums'" in text
    seen = flatten(config)
    assert (seen["wandb_key"], seen["wandb_project"]) == ("(hidden)", "sums")
    assert SECRET not in text + repr(config) + repr(seen)


@pytest.mark.parametrize("name", ["HF_TOKEN", "GITHUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET"])
def test_secrets_among_environment_variables_are_in_no_record(name):
    value = json.dumps({name: "abc", "NCCL_DEBUG": "INFO"})
    hidden = json.dumps({name: "(hidden)", "NCCL_DEBUG": "INFO"})
    words = ["--train-env-vars", value, f"--train-env-vars={value}", "--lr", "1"]
    shown = ["--train-env-vars", hidden, f"--train-env-vars={hidden}", "--lr", "1"]
    assert words_without_secrets(words) == shown


def test_objects_without_secrets_and_what_is_none_are_recorded_as_they_were_given():
    words = ["--apply-chat-template-kwargs", '{"a":1,  "eos_token": "x"}', "--a", "{no json", "{1}"]
    assert words_without_secrets(words) == words
