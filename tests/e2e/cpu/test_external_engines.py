"""A run that gives its weights, as differences on disk, to an engine that somebody else runs."""

import json

import pytest
from slime_sglang.client import EngineClient
from slime_sglang.server.launch import EngineSpec, start_engine
from slime_testing.runs import run, series, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = pytest.mark.slow

HOOK = """
import json
from pathlib import Path

def post_write(args, version_dir, engines):
    directory = Path(version_dir)
    index = json.loads((directory / "index.json").read_text())
    with (Path(args.output_dir) / "written.jsonl").open("a") as file:
        line = {"kind": index["kind"], "engines": [engine.url for engine in engines]}
        file.write(json.dumps({"name": directory.name, **line}) + "\\n")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_qwen3(tmp_path_factory.mktemp("external") / "model")


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    logs = tmp_path_factory.mktemp("somebody")
    spec = EngineSpec(
        name="theirs", model_path=model, device="cpu", log_dir=logs,
        server={"max_total_tokens": 16384},
    )  # fmt: skip
    engine = start_engine(spec)
    yield engine
    engine.stop()


def test_it_is_found_out_about_given_differences_and_left_running(engine, model, tmp_path):
    (tmp_path / "mine.py").write_text(HOOK)
    (tmp_path / "even.py").write_text(
        "async def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"
    )
    out = tmp_path / "out"
    command = [
        "--hf-checkpoint", model, "--prompt-data", write_sums(tmp_path / "sums.jsonl", 8),
        "--apply-chat-template", "--num-rollout", 2, "--rollout-batch-size", 4,
        "--n-samples-per-prompt", 4, "--global-batch-size", 16, "--rollout-max-response-len", 6,
        "--lr", "1e-2", "--custom-rm-path", f"{tmp_path}/even.py:even", "--output-dir", out,
        "--rollout-external-engine-addrs", engine.url.removeprefix("http://"),
        "--update-weight-transport", "disk", "--update-weight-mode", "delta",
        "--update-weight-disk-dir", tmp_path / "versions", "--update-weight-buffer-size", 100_000,
        "--update-weight-local-checkpoint-dir", tmp_path / "copy",
        "--custom-update-weight-post-write-path", tmp_path / "mine.py",
    ]  # fmt: skip
    run(*command)
    engine.check_alive()
    with EngineClient(engine.url) as client:
        assert client.weight_version() == "2"
    differences = series(out, "train/train_rollout_logprob_abs_diff")
    assert list(differences) == [0, 1]
    assert 0 < max(differences.values()) <= 1e-4
    written = [json.loads(line) for line in (out / "written.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in written] == ["full", "delta", "delta"]
    assert written[0] == {"name": "weight_v000000", "kind": "full", "engines": [engine.url]}
    density = list(series(out, "perf/update_weights_density").values())
    assert all(0 < value <= 1 for value in density)
    assert series(out, "perf/update_weights_buckets")[1] > 1
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["weight_v000002"]


def test_an_address_without_an_engine_ends_the_run_with_the_flag(model, tmp_path):
    output = run(
        "--hf-checkpoint", model, "--prompt-data", write_sums(tmp_path / "sums.jsonl", 8),
        "--num-rollout", 1, "--rollout-batch-size", 4, "--rm-type", "math",
        "--output-dir", tmp_path / "out", "--rollout-external-engine-addrs", "127.0.0.1:9",
        "--debug-rollout-only", expect=1,
    )  # fmt: skip
    assert "--rollout-external-engine-addrs http://127.0.0.1:9: no engine answers" in output
