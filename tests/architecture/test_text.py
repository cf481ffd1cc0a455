"""What stands in tracked text: links lead somewhere, nothing names one machine."""

import re
from pathlib import Path

import pytest
from slime_testing.workspace import ROOT, tracked_files

TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".json", ".txt", ".cfg", ""}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HOME_DIRECTORY = re.compile(r"(?<![\w./-])/(?:root|work|home/\w+)/")


def texts(*suffixes: str) -> list[Path]:
    return [path for path in tracked_files() if path.suffix in (suffixes or TEXT)]


def dead_links(page: Path) -> list[str]:
    """Relative links of a Markdown page that lead to no file."""
    links = [link.split("#")[0] for link in LINK.findall(page.read_text())]
    local = [link for link in links if link and "://" not in link and ":" not in link]
    return [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", texts(".md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    assert not dead_links(page)


def test_a_dead_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("[here](page.md#top) [gone](gone.md) [web](https://example.org/x)")
    assert dead_links(page) == ["gone.md"]


PACKAGE_PAGES = [*ROOT.glob("packages/*/README.md"), *ROOT.glob("apps/*/README.md")]


@pytest.mark.parametrize("page", PACKAGE_PAGES, ids=lambda page: page.parent.name)
def test_a_packages_page_names_modules_that_are_there(page: Path):
    (source,) = (page.parent / "src").iterdir()
    rows = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z_./]+)`", row)]
    assert named
    for name in named:
        module = source / name.replace(".", "/")
        assert module.is_dir() or module.with_suffix(".py").is_file() or (source / name).is_file()


SOURCES = {page.parent.name: page for page in ROOT.glob("*/*/src/*/__init__.py")}
DOTTED = re.compile(r"`(slime_[a-z]+(?:\.\w+)+)")


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a word in the module it leads to."""
    head, *rest = name.split(".")
    place = SOURCES[head].parent
    for part in rest:
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            place = place / f"{part}.py"
        else:
            text = (place / "__init__.py" if place.is_dir() else place).read_text()
            return re.search(rf"\b{part}\b", text) is not None
    return True


@pytest.mark.parametrize("page", texts(".md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_modules_that_are_there(page: Path):
    named = [name for name in DOTTED.findall(page.read_text()) if name.split(".")[0] in SOURCES]
    assert [name for name in named if not is_there(name)] == []


def test_a_name_that_is_not_there_is_found():
    assert is_there("slime_core.types.Sample")
    assert is_there("slime_core.config.rules")
    assert not is_there("slime_train.rules")
    assert not is_there("slime_train.checkpoints")


def test_no_file_holds_a_path_of_somebodys_machine():
    named = {
        str(path.relative_to(ROOT)): found
        for path in texts()
        if (found := HOME_DIRECTORY.findall(path.read_text()))
    }
    assert not named


@pytest.mark.parametrize(("page", "lines"), [("README.md", 120), ("AGENTS.md", 80)])
def test_entry_pages_are_short(page: str, lines: int):
    assert len((ROOT / page).read_text().splitlines()) <= lines
