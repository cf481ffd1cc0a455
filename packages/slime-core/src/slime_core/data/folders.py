"""Folders of records: those that ``datasets`` saves, and plain ones of data files."""

import json
import logging
from pathlib import Path
from typing import Any

from slime_core.data.formats import KNOWN, DataFile, is_known, open_file
from slime_core.errors import DataError

logger = logging.getLogger(__name__)

_TRAINING = "train"
_OTHERS = ("test", "validation", "valid", "val", "dev", "eval")


def open_path(path: Path) -> list[DataFile]:
    """The files behind ``path``, itself one or a folder, in the order of their rows."""
    if not path.is_dir():
        return [open_file(path)]
    if (path / "dataset_dict.json").is_file():
        return open_path(path / _split(path))
    if (path / "state.json").is_file():
        state: Any = _read(path / "state.json")
        return [open_file(path / entry["filename"]) for entry in state["_data_files"]]
    return [open_file(file) for file in _plain(path)]


def _split(path: Path) -> str:
    splits: list[str] = _read(path / "dataset_dict.json")["splits"]
    if _TRAINING not in splits and len(splits) > 1:
        raise DataError(f"{path} holds the splits {splits}: name one as {path}/{splits[0]}")
    chosen = _TRAINING if _TRAINING in splits else splits[0]
    logger.info("%s: split %r of %s", path, chosen, splits)
    return chosen


def _plain(path: Path) -> list[Path]:
    """Data files below ``path`` by name; where some are named for training, only those."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and is_known(file) and not file.name.startswith(".")
    )
    # Beside data files, .json files describe them.
    files = [file for file in files if file.suffix != ".json"] or files
    formats = sorted({file.suffix for file in files})
    if len(formats) != 1:
        found = f"files of several kinds ({', '.join(formats)})" if formats else "no data files"
        raise DataError(f"{path} is a folder with {found}; known are {KNOWN}: name the files")
    training = [file for file in files if _TRAINING in _words(file.relative_to(path))]
    others = [file for file in files if _words(file.relative_to(path)) & set(_OTHERS)]
    if others and not training:
        raise DataError(
            f"{path} is a folder with files for evaluation ({others[0].relative_to(path)}) and "
            "none for training: name the files"
        )
    return training or files


def _words(path: Path) -> set[str]:
    text = "".join(char if char.isalnum() else " " for char in str(path.with_suffix("")))
    return set(text.lower().split())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
