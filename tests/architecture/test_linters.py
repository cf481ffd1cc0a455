"""The static checks, run as tests so that one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest
from slime_testing.workspace import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.timeout(900)  # the type checker reads Megatron, SGLang and transformers
@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "lint-imports --no-cache", "basedpyright"],
)
def test_the_checker_finds_nothing(command: str):
    name, *arguments = command.split()
    done = subprocess.run(
        [BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_hidden_in_a_function_breaks_a_contract(tmp_path: Path):
    for package in ("low", "high"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "low/hidden.py").write_text("def late():\n    import high\n    return high\n")
    (tmp_path / "contracts.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["low", "high"]\n'
        '[[tool.importlinter.contracts]]\nname = "layers"\ntype = "layers"\n'
        'layers = ["high", "low"]\n'
    )
    command = [BIN / "lint-imports", "--no-cache", "--config", "contracts.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "low.hidden -> high" in done.stdout
