import importlib
import importlib.metadata
import sys
from pathlib import Path

import pytest
from slime_core.processes.imports import lean, packages_distributions


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three installed distributions: packages declared, packages to be inferred, one module."""
    files = {
        "Big-Thing": ("alpha\nbeta\n", ["alpha/__init__.py", "beta/__init__.py"]),
        "small": ("", ["gamma/__init__.py", "gamma/deep/er.py", "../../bin/small"]),
        "single": ("", ["delta.py", "alpha/more.py"]),
    }
    for name, (declared, paths) in files.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if declared:
            (info / "top_level.txt").write_text(declared)
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("")
        (info / "RECORD").write_text(
            "".join(f"{p},sha256=x,0\n" for p in [*paths, f"{info.name}/RECORD"])
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_packages_belong_to_the_distributions_that_python_itself_finds(site: Path):
    found, wanted = packages_distributions(), importlib.metadata.packages_distributions()
    assert set(found) == {"alpha", "beta", "gamma", "delta"}
    for package, names in found.items():
        assert sorted(names) == sorted(wanted[package])


def test_a_package_is_hidden_while_another_is_imported(site: Path):
    asked = importlib.metadata.packages_distributions
    (site / "asks.py").write_text(
        "from importlib.metadata import packages_distributions as asked\n"
        "try:\n    import alpha\n    found = True\nexcept ImportError:\n    found = False\n"
    )
    with lean("alpha"):
        asks = importlib.import_module("asks")
    assert asks.found is False
    assert asks.asked is packages_distributions
    assert importlib.metadata.packages_distributions is asked
    assert importlib.import_module("alpha").__file__
    del sys.modules["alpha"], sys.modules["asks"]


def test_what_is_imported_already_is_hidden_with_all_its_modules_and_comes_back(site: Path):
    (site / "beta" / "inner.py").write_text("")
    there = [importlib.import_module(name) for name in ("beta", "beta.inner")]
    with lean("beta"):
        for name in ("beta", "beta.inner"):
            with pytest.raises(ImportError):
                importlib.import_module(name)
    assert [importlib.import_module(name) for name in ("beta", "beta.inner")] == there
    del sys.modules["beta"], sys.modules["beta.inner"]
