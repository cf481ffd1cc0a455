"""The six packages carry one version and pin each other to it."""

import tomllib

import pytest
from slime_testing.workspace import PACKAGES, ROOT

PROJECTS = {
    name: tomllib.loads((path / "pyproject.toml").read_text())["project"]
    for name, path in PACKAGES.items()
}
VERSION = PROJECTS["slime_core"]["version"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_version_is_the_common_one(package: str):
    assert PROJECTS[package]["version"] == VERSION


@pytest.mark.parametrize("package", PACKAGES)
def test_siblings_are_pinned_exactly(package: str):
    siblings = [d for d in PROJECTS[package]["dependencies"] if d.startswith("slime-")]
    assert all(sibling.endswith(f"=={VERSION}") for sibling in siblings), siblings


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_its_licence_readme_and_python(package: str):
    project = PROJECTS[package]
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.12,<3.13"
    assert (PACKAGES[package] / project["readme"]).read_text().strip()


def test_the_changelog_has_the_version():
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


LOCKED = {p["name"]: p for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
ONLY_FOR_TESTS = {"trl", "accelerate"}


def reached(name: str) -> set[str]:
    """What installing a locked package brings with it, extras included; no groups."""
    found, waiting = set[str](), [name]
    while waiting:
        found.add(name := waiting.pop())
        extras = LOCKED[name].get("optional-dependencies", {}).values()
        needs = [*LOCKED[name].get("dependencies", []), *(need for row in extras for need in row)]
        waiting += [need["name"] for need in needs if need["name"] not in found]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_brings_what_only_tests_compare_with(package: str):
    assert not reached(package.replace("_", "-")) & ONLY_FOR_TESTS


def test_the_workspace_has_it_for_development_only():
    workspace = LOCKED["slime-workspace"]
    assert not reached("slime-workspace") & ONLY_FOR_TESTS
    assert "trl" in {need["name"] for need in workspace["dev-dependencies"]["dev"]}
    assert reached("trl") >= ONLY_FOR_TESTS
