"""Every process of a run writes its own log file; only the driver speaks to the terminal."""

import logging
from pathlib import Path

from slime_core.errors import ConfigErrors

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
    logging.captureWarnings(True)
