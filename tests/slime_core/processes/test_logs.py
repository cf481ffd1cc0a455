import logging
import subprocess
import sys
from pathlib import Path

import pytest
from slime_core.errors import ConfigErrors
from slime_core.processes.logs import output_directory


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
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    warns(False)


def test_the_driver_logs_into_the_output_directory(tmp_path: Path):
    directory = output_directory(str(tmp_path / "new" / "run"))
    logging.getLogger("test").warning("hello")
    assert "hello" in (directory / "logs" / "driver.log").read_text()


def test_requests_do_not_push_what_matters_out_of_a_log(tmp_path: Path):
    directory = output_directory(str(tmp_path))
    logging.getLogger("httpx").info("HTTP Request: GET /workers")
    logging.getLogger("httpx").warning("no connection")
    logged = (directory / "logs" / "driver.log").read_text()
    assert "HTTP Request" not in logged
    assert "no connection" in logged


def test_an_output_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    given = str(tmp_path / "file" / "run")
    with pytest.raises(ConfigErrors, match=f"--output-dir {given}: cannot be written"):
        output_directory(given)


PRINTS = """
import logging, os, pathlib, sys
from slime_core.processes.logs import log_everything_to_file
log_everything_to_file(pathlib.Path(sys.argv[1]))
print("of print")
print("of stderr", file=sys.stderr)
os.system("echo of a child")
logging.getLogger("test").info("of logging")
os._exit(0)  # nothing is flushed on the way out
"""


def test_what_a_worker_and_its_children_print_is_in_its_log(tmp_path: Path):
    log = tmp_path / "logs" / "rollout.log"
    command = [sys.executable, "-c", PRINTS, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    lines = log.read_text().splitlines()
    assert lines[:3] == ["of print", "of stderr", "of a child"]
    assert lines[3].endswith("INFO test: of logging")
