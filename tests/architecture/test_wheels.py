"""Each wheel declares what it imports, and installs in an environment of its own."""

import ast
import functools
import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from slime_testing.workspace import PACKAGES, ROOT

FRAMEWORKS = {"megatron", "ray", "sglang"}

ALONE = {
    "slime_core": "slime_core.batch",
    "slime_rewards": "slime_rewards",
    "slime_convert": "slime_convert.families",
    "slime_sglang": "slime_sglang",
    "slime_megatron": "slime_megatron",
    "slime_train": "slime_train.loop",
}
"""What of each package is imported where only its wheel and what it declares are installed."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    run_uv("build", "--all-packages", "--wheel", "--out-dir", str(out), str(ROOT))
    return {wheel.name.split("-")[0]: wheel for wheel in out.glob("*.whl")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment outside the repository, refilled for each package in turn."""
    directory = tmp_path_factory.mktemp("alone") / "venv"
    run_uv("venv", str(directory))
    return directory


def run_uv(*arguments: str, python: str | Path = sys.executable) -> str:
    command = [os.environ.get("UV", "uv"), *arguments, "--python", str(python)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(wheel: Path) -> set[str]:
    """The distributions a wheel asks for."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = re.compile(r"[^/]+\.dist-info/METADATA")
        name = next(n for n in archive.namelist() if metadata.fullmatch(n))
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = [re.match(r"[\w.-]+", need) for need in metadata.get_all("Requires-Dist", [])]
    return {normalized(match.group()) for match in needs if match}


distributions_of_packages = functools.cache(packages_distributions)


def with_siblings(wheels: dict[str, Path], package: str) -> list[Path]:
    """The wheel of a package and those of the siblings it needs, directly or not."""
    found, waiting = set[str](), [package]
    while waiting:
        found.add(name := waiting.pop())
        needs = declared(wheels[name])
        waiting += [other for other in wheels if normalized(other) in needs - found]
    return [wheels[name] for name in sorted(found)]


def imported(source: str) -> set[str]:
    """The root of every absolute import of a module, also of those inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def owners(root: str) -> set[str]:
    """The distributions that install an import package; an editable one goes by its own name."""
    return {normalized(name) for name in distributions_of_packages().get(root, [root])}


def undeclared(wheel: Path, package: str) -> dict[str, set[str]]:
    """Modules of a wheel, each with the roots it imports that no declared distribution has."""
    needs = declared(wheel)
    problems: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".py"):
                continue
            roots = imported(archive.read(name).decode()) - {package}
            missing = {root for root in roots if not needs & owners(root)}
            if missing:
                problems[name] = missing
    return problems


def test_all_six_are_built(wheels: dict[str, Path]):
    assert set(wheels) == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_wheel_imports_is_declared(wheels: dict[str, Path], package: str):
    assert not undeclared(wheels[package], package)


def test_an_undeclared_import_is_found(tmp_path: Path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", "Requires-Dist: numpy>=1\n")
        archive.writestr("a/b.py", "import numpy\ndef f():\n    import torch.nn, json\n")
    assert undeclared(wheel, "a") == {"a/b.py": {"torch"}}


@pytest.mark.slow
@pytest.mark.parametrize("package", ALONE)
def test_a_wheel_installs_and_imports_alone(
    wheels: dict[str, Path], environment: Path, tmp_path: Path, package: str
):
    # Third-party versions come from the lock; of the workspace there are only wheels.
    locked = run_uv(
        *("export", "--project", str(ROOT), "--frozen", "--package", package.replace("_", "-")),
        *("--no-dev", "--no-emit-workspace", "--no-hashes", "--no-header", "--no-annotate"),
    )
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("\n".join([locked, *map(str, with_siblings(wheels, package))]))
    python = environment / "bin/python"
    # Links instead of copies: the environment of the app has 9 GB of libraries.
    run_uv("pip", "sync", "--quiet", "--link-mode", "symlink", str(requirements), python=python)
    code = (
        f"import sys, {ALONE[package]}; sys.exit(', '.join({FRAMEWORKS!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
