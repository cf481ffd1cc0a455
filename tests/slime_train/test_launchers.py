"""The launch scripts are command lines that eight GPUs can run."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from slime_convert.presets import PRESETS
from slime_testing.workspace import ROOT

SCRIPTS = ROOT / "scripts"
GRPO, SFT = SCRIPTS / "run-qwen3-4B.sh", SCRIPTS / "run-qwen3-4B-base-sft.sh"
JOBS = SCRIPTS / "slurm_scripts"
GIVEN = {
    *("HF_CHECKPOINT", "PROMPT_DATA", "EVAL_DATA", "REF_LOAD", "OUTPUT_DIR", "NUM_GPUS"),
    *("SLURM_SUBMIT_DIR", "SLURM_GPUS_ON_NODE"),
}


def launched(script: Path, *words: str, **variables: object) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN}
    environment.update({name: str(value) for name, value in variables.items()})
    return subprocess.run(
        ["bash", script, *words], env=environment, capture_output=True, text=True, check=False
    )


def shown(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """Slime's own values of a dump."""
    assert done.returncode == 0, done.stderr
    own = done.stdout.split("\n[megatron]")[0].splitlines()
    return {words[0]: words[1] for words in map(str.split, own) if len(words) > 1}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "config.json").write_text(json.dumps(dict(PRESETS["qwen3-4B"])))
    talk = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    row = json.dumps({"prompt": "1 + 1", "label": "2", "messages": talk})
    (tmp_path / "rows.jsonl").write_text((row + "\n") * 128)
    return {"HF_CHECKPOINT": tmp_path, "PROMPT_DATA": tmp_path / "rows.jsonl"}


def test_reinforcement_fits_on_eight_gpus_and_evaluates_what_it_is_given(files: dict[str, Path]):
    words = ("--dump-config", "--assume-gpus", "8", "--num-rollout", "7")
    done = launched(GRPO, *words, **files, EVAL_DATA=files["PROMPT_DATA"])
    values = shown(done)
    assert [line for line in done.stderr.splitlines() if "--assume-gpus" not in line] == []
    assert (values["colocate"], values["rollout_num_engines"]) == ("True", "4")
    assert (values["eval_interval"], values["num_rollout"]) == ("20", "7")


def test_fine_tuning_fits_on_the_gpus_that_are_said(files: dict[str, Path]):
    values = shown(launched(SFT, "--dump-config", "--assume-gpus", "4", **files, NUM_GPUS=4))
    assert (values["actor_num_gpus_per_node"], values["num_rollout"]) == ("4", "3")


@pytest.mark.parametrize(("job", "rollouts"), [("grpo", "3000"), ("sft", "3")])
def test_a_job_uses_the_gpus_that_it_was_granted(files: dict[str, Path], job: str, rollouts: str):
    granted = {"SLURM_SUBMIT_DIR": ROOT, "SLURM_GPUS_ON_NODE": 4}
    script = JOBS / f"run_qwen3_4b_{job}.slurm"
    values = shown(launched(script, "--dump-config", "--assume-gpus", "4", **files, **granted))
    assert (values["actor_num_gpus_per_node"], values["num_rollout"]) == ("4", rollouts)


@pytest.mark.parametrize("script", [GRPO, SFT], ids=lambda script: script.stem)
def test_what_is_missing_is_named(script: Path, tmp_path: Path):
    told = launched(script)
    assert (told.returncode, told.stdout) == (1, "")
    assert "HF_CHECKPOINT: set it to a directory with the model: hf download Qwen/" in told.stderr
    assert "PROMPT_DATA: set it" in launched(script, HF_CHECKPOINT=tmp_path).stderr


def test_a_job_outside_a_clone_says_where_to_submit_it(tmp_path: Path):
    for script in JOBS.iterdir():
        assert "no clone" in launched(script, SLURM_SUBMIT_DIR=tmp_path).stderr
        assert "submit it with sbatch, or run scripts/" in launched(script).stderr
