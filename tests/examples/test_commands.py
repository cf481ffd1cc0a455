"""Every example's script runs up to its training commands, and these are accepted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from slime_testing.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.sh"))

TRAIN = """#!{python} -S
import json, shutil, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
if "--save-hf" in words:
    shutil.copytree({trained!r}, words[words.index("--save-hf") + 1], dirs_exist_ok=True)
"""

QUICKSTART = """#!{python} -S
import pathlib, shutil, sys
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--output-dir") + 1])
shutil.copytree({model!r}, out / "model")
shutil.copytree({data!r}, out / "data")
if words[words.index("--stop-after") + 1] == "warm-up":
    shutil.copytree({trained!r}, out / "warm-up" / "hf")
"""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quickstart makes: ``model``, ``data``, and what a run would write, ``trained``."""
    from slime_convert.hf import write_hf
    from slime_train.quickstart.cli import write_model
    from slime_train.quickstart.task import write_task

    root = tmp_path_factory.mktemp("quickstart")
    write_model(root / "model", seed=0)
    write_task(root / "data", seed=0)
    tensors = load_file(root / "model" / "model.safetensors")
    write_hf(root / "trained", tensors.items(), source=root / "model")
    return root


def commands_of(example: Path, quickstart: Path, directory: Path) -> list[list[str]]:
    """What the script would train, found with commands that only write down their words."""
    tools = directory / "bin"
    tools.mkdir()
    log = directory / "commands.jsonl"
    values = {
        "python": sys.executable,
        "log": str(log),
        "model": str(quickstart / "model"),
        "data": str(quickstart / "data"),
        "trained": str(quickstart / "trained"),
    }
    shims = {"slime-train": TRAIN, "slime-train-async": TRAIN, "slime-quickstart": QUICKSTART}
    for name, text in shims.items():
        (tools / name).write_text(text.format(**values))
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", example / "run.sh", directory / "out"],
        env={**os.environ, "PATH": path, "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_commands_of_an_example_are_accepted(
    example: Path, quickstart: Path, tmp_path: Path
) -> None:
    from slime_core.hooks.user_functions import problems
    from slime_train.facts import gather
    from slime_train.resolve import resolve
    from slime_train.sources import read_sources

    found = commands_of(example, quickstart, tmp_path)
    assert found
    for words in found:
        raw = read_sources(words)
        resolve(raw, gather(raw), also=problems)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_how_to_run_it(example: Path) -> None:
    text = (example / "README.md").read_text(encoding="utf-8")
    assert f"examples/{example.name}/run.sh outputs/" in text
    assert os.access(example / "run.sh", os.X_OK)
