import logging
from pathlib import Path

import pytest
from slime_core.errors import ConfigErrors
from slime_core.logs import output_directory


@pytest.fixture(autouse=True)
def handlers():
    """Those that are added go with the test."""
    root, warns = logging.getLogger(), logging.captureWarnings
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    warns(False)


def test_the_driver_logs_into_the_output_directory(tmp_path: Path):
    directory = output_directory(str(tmp_path / "new" / "run"))
    logging.getLogger("test").warning("hello")
    assert "hello" in (directory / "logs" / "driver.log").read_text()


def test_an_output_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    given = str(tmp_path / "file" / "run")
    with pytest.raises(ConfigErrors, match=f"--output-dir {given}: cannot be written"):
        output_directory(given)
