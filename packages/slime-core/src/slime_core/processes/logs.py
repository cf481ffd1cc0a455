"""Every process of a run writes its own log file; only the driver speaks to the terminal."""

import io
import logging
import os
import sys
from pathlib import Path

from slime_core.errors import ConfigErrors

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_TALKATIVE = ("httpx", "httpcore")
"""Write a line for every request, which pushes what matters out of the end of a log."""


def output_directory(given: str) -> Path:
    """Make the directory of --output-dir; this process, the driver, logs into it from now on.

    Raises:
        ConfigErrors: it cannot be written.
    """
    directory = Path(given).resolve()
    try:
        log_to_file(directory / "logs" / "driver.log")
    except OSError as error:
        raise ConfigErrors([f"--output-dir {given}: cannot be written ({error})"]) from error
    return directory


def log_to_file(path: Path) -> None:
    """Send this process's log records to ``path``, appending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def log_everything_to_file(path: Path) -> None:
    """The same for a process that nobody looks at: what it and its children print goes there, too.

    What native code writes before it crashes is printed that way.
    """
    log_to_file(path)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
