"""Flags of data as a run reads them: from the command line to what a checkpoint holds."""

import json

import pytest
from slime_core.errors import ConfigErrors, DataError
from slime_core.hooks.user_functions import problems
from slime_testing.tiny import make_qwen3
from slime_train.facts import gather
from slime_train.resolve import resolve
from slime_train.rollout_host import RolloutHost
from slime_train.sources import read_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_qwen3(tmp_path_factory.mktemp("model"))


def resolved(model, *words):
    base = ["--hf-checkpoint", model, "--loss-type", "sft_loss", "--rollout-batch-size", 5]
    raw = read_sources([str(word) for word in (*base, "--global-batch-size", 5, *words)])
    return resolve(raw, gather(raw), also=problems).config


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "label": str(2 * i)} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{i}-{i}=,0" for i in range(9)]
    (tmp_path / "b.csv").write_text("\n".join(["prompt,label", *lines]) + "\n")
    return tmp_path / "a.jsonl", f"{tmp_path / 'b.csv'}*2"


def tokens(host, iteration):
    payloads, metrics = host.generate(iteration)
    return [payload.batch.tokens.values.tolist() for payload in payloads], metrics


def test_a_streamed_run_continues_inside_a_window_with_other_workers(model, files, tmp_path):
    common = (
        "--prompt-data", *files, "--streaming-data", "--streaming-window", 8, "--rollout-shuffle",
        "--num-epoch", 2, "--rollout-seed", 3,
    )  # fmt: skip
    host = RolloutHost(resolved(model, *common, "--num-data-workers", 1), tmp_path)
    assert host.start(None)[0] == 12 + 2 * 9
    for iteration in range(3):
        tokens(host, iteration)
    state = json.loads(json.dumps(host._producer.state_dict()))
    again = RolloutHost(resolved(model, *common), tmp_path)
    again.start(None)
    again._producer.load_state_dict(state)
    for iteration in range(3, 9):
        ours, metrics = tokens(host, iteration)
        theirs, same = tokens(again, iteration)
        assert ours == theirs
        assert metrics["rollout/prompts_given_out"] == 5 * (iteration + 1)
        assert metrics["rollout/prompts_trained"] == same["rollout/prompts_trained"]
    host.stop()


def test_epochs_over_weighted_files_give_the_number_of_iterations(model, files):
    config = resolved(model, "--prompt-data", *files, "--num-epoch", 3)
    assert config.rollout.num_rollout == 3 * (12 + 2 * 9) // 5


@pytest.mark.parametrize("more", [(), ("--streaming-data",), ("--num-data-workers", 1)])
def test_bad_rows_end_the_run_before_anything_is_started(model, files, tmp_path, more):
    with files[0].open("a") as file:
        file.write('{"prompt": "1+1=", "label": "2"}\n' * 100 + '{"prompt": "1+1="}\n{\n')
    words = ("--prompt-data", files[0], "--num-rollout", 1, *more)
    with pytest.raises(DataError, match=r"2 of 114 rows .*\n.*a.jsonl:113: no key 'label'"):
        RolloutHost(resolved(model, *words), tmp_path)
    host = RolloutHost(resolved(model, *words, "--data-error-policy", "skip"), tmp_path)
    tokens(host, 0)
    host.stop()


def test_what_cannot_be_together_is_said_with_the_command_line(model, files):
    words = ("--prompt-data", files[0], "--num-rollout", 1)
    with pytest.raises(ConfigErrors, match=r"--streaming-data holds a window"):
        resolved(model, *words, "--streaming-data", "--data-duplicate-ids", "skip")
    with pytest.raises(ConfigErrors, match="give --data-source-path"):
        resolved(model, *words, "--disable-rollout-global-dataset")
    with pytest.raises(ConfigErrors, match=r"PATH@\[START:STOP\]"):
        resolved(model, "--prompt-data", f"{files[0]}@[1]", "--num-rollout", 1)
    with pytest.raises(ConfigErrors, match=r"^\D*--data-source-path nowhere\.Source: "):
        resolved(model, *words, "--data-source-path", "nowhere.Source")


def start(model, directory, *words):
    """A run's producer with its prompts read, and no engine yet."""
    base = ["--hf-checkpoint", model, "--rm-type", "math", "--rollout-batch-size", 1]
    base += ["--global-batch-size", 1, "--num-rollout", 1, "--rollout-max-response-len", 32]
    raw = read_sources([str(word) for word in (*base, *words)])
    return RolloutHost(resolve(raw, gather(raw), also=problems).config, directory)


def test_a_prompt_beyond_the_engines_context_ends_the_run_before_there_is_one(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    length = config["max_position_embeddings"]
    long, short = tmp_path / "long.jsonl", tmp_path / "short.jsonl"
    for path, text in ((long, "1" * (length - 16)), (short, "1+1=")):
        path.write_text(json.dumps({"prompt": text, "label": "2"}) + "\n")
    told = f"{length - 16} tokens, more than the {length - 32} .* context of {length} leaves beside"
    with pytest.raises(DataError, match=rf"long.jsonl:1: the prompt has {told} a response of 32"):
        start(model, tmp_path, "--prompt-data", long)
    with pytest.raises(DataError, match=r"long.jsonl:1: the prompt has"):
        start(model, tmp_path, "--prompt-data", short, "--eval-prompt-data", "x", long)
    start(model, tmp_path, "--prompt-data", long, "--rollout-max-context-len", length).stop()


def test_a_row_without_the_label_that_is_compared_with_ends_the_run_before_it_starts(
    model, tmp_path
):
    labelled, gap = tmp_path / "labelled.jsonl", tmp_path / "gap.jsonl"
    labelled.write_text('{"prompt": "1+1=", "label": "2"}\n')
    gap.write_text(labelled.read_text() + '{"prompt": "1+2=", "label": null}\n')
    told = r"gap.jsonl:2: 'label' is None, and math compares"
    for words in (["--prompt-data", gap], ["--prompt-data", gap, "--streaming-data"]):
        with pytest.raises(DataError, match=told):
            start(model, tmp_path, *words)
    with pytest.raises(DataError, match=told):
        start(model, tmp_path, "--prompt-data", labelled, "--eval-prompt-data", "x", gap)
    start(model, tmp_path, "--prompt-data", gap, "--data-error-policy", "skip").stop()
