"""What a run leaves behind about itself: which command it was, with which values and versions."""

import logging
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slime_core.config.secrets import words_without_secrets
from slime_core.files.aside import set_aside
from slime_core.files.durable import replace_file

COMMANDS = "command.txt"
"""One block for each start of a run in this directory, the newest last."""
CONFIG = "config.txt"
"""What ``--dump-config`` prints, of the newest start; ``config-1.txt``, ... of those before it."""

PACKAGES = (
    *("slime-train", "slime-core", "slime-megatron", "slime-sglang", "slime-rewards"),
    *("torch", "megatron-core", "transformer-engine", "sglang", "transformers", "ray"),
)
_GIT_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A command, and what it amounts to."""

    program: str
    words: Sequence[str]
    config: Iterable[str]
    """Lines."""

    def write(self, directory: Path) -> None:
        """Log the command, and write it and its configuration into a run's ``directory``.

        A configuration that differs from the one there is kept beside it, not written over.
        """
        command = shlex.join((self.program, *words_without_secrets(self.words)))
        logger.info("%s", command)
        with (directory / COMMANDS).open("a", encoding="utf-8") as file:
            file.write(f"{command}\n" + "".join(f"# {line}\n" for line in _circumstances()) + "\n")
        text, path = "".join(f"{line}\n" for line in self.config), directory / CONFIG
        if path.exists() and path.read_bytes() != text.encode():
            set_aside(path)
        replace_file(path, text)


def _circumstances() -> Iterable[str]:
    yield time.strftime("started %Y-%m-%d %H:%M:%S %z")
    yield f"in {Path.cwd()} on {socket.gethostname()}, process {os.getpid()}"
    found = {name: _version(name) for name in PACKAGES}
    versions = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield f"Python {sys.version.split()[0]}, {versions}"
    if commit := _commit(Path(__file__).resolve()):
        yield f"slime's sources are at commit {commit}"


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _commit(source: Path) -> str | None:
    """The commit of the clone that ``source`` is a part of, if it is; marked where files differ."""
    if "site-packages" in source.parts:
        return None
    command = ["git", "-C", str(source.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S)
        return done.stdout.strip()
    return None
