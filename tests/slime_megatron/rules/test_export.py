"""A run does not learn at its end that its weights had no place."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slime_convert.hf import write_hf
from slime_core.config.draft import Draft, Facts
from slime_megatron.rules.export import export


def problems(model: Path, save_hf: str, *, dump_config: bool = False) -> list[str]:
    made = Draft()
    values = {"hf_checkpoint": str(model), "save_hf": save_hf, "dump_config": dump_config}
    for name, value in values.items():
        made.own.put(name, value, "command line")
    export(made, Facts())
    return made.problems


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_a_directory_of_others_a_file_and_the_model_itself_are_refused(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (told,) = problems(model, f"{tmp_path}/notes")
    assert told.startswith(f"--save-hf {tmp_path}/notes: {tmp_path}/notes is not empty and was not")
    (told,) = problems(model, f"{tmp_path}/notes/a.txt")
    assert "is a file: choose another directory" in told
    for place in (model, model / "trained", tmp_path):
        assert len(problems(model, str(place))) == 1


def test_a_new_directory_and_an_earlier_export_are_taken(model: Path, tmp_path: Path) -> None:
    assert problems(model, f"{tmp_path}/hf") == []
    write_hf(tmp_path / "hf", [("a", torch.zeros(1))], source=model)
    assert problems(model, f"{tmp_path}/hf") == []


def test_a_dump_on_another_machine_and_numbered_directories_are_not_looked_at(
    model: Path, tmp_path: Path
) -> None:
    assert problems(model, str(tmp_path), dump_config=True) == []
    (tmp_path / "hf-0").mkdir()
    (tmp_path / "hf-0" / "mine").write_text("")
    assert problems(model, f"{tmp_path}/hf-{{rollout_id}}") == []


def test_an_earlier_export_is_looked_into_without_torch(model: Path, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", [("a", torch.zeros(1))], source=model)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from slime_convert.target.replaceable import check_target\n"
        "from slime_megatron.rules import export\n"
        "check_target(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "hf"), str(model)]
    assert subprocess.run(words, check=False).returncode == 0
