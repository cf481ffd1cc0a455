"""Whether a directory may be replaced by a Hugging Face checkpoint; found without torch."""

from pathlib import Path

from slime_core.errors import CheckpointError

from slime_convert.safetensors_header import read_header

WRITER = "slime-convert"
"""What the files that slime writes say of themselves."""


def check_target(directory: Path, source: Path) -> None:
    """Check that ``directory`` is new or what an earlier call wrote, and apart from ``source``.

    Raises:
        CheckpointError: it is not.
    """
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source} has no config.json to copy into {directory}")
    target, origin = directory.resolve(), source.resolve()
    if target == origin or target in origin.parents or origin in target.parents:
        raise CheckpointError(
            f"{directory} and the checkpoint the run started from ({source}) must not be or "
            "contain each other: choose another directory"
        )
    if directory.is_dir():
        _check_replaceable(directory)
    elif directory.exists():
        raise CheckpointError(f"{directory} is a file: choose another directory")


def _check_replaceable(directory: Path) -> None:
    present = sorted(directory.iterdir())
    if present and not _is_ours(directory):
        raise CheckpointError(
            f"{directory} is not empty and was not written by slime: "
            "choose another directory or remove it"
        )
    inner = [path.name for path in present if path.is_dir()]
    if inner:  # no call made it; it may be the very checkpoint that is converted
        raise CheckpointError(
            f"{directory} would be replaced, and the directory {inner[0]} in it deleted: choose "
            "another directory or move that one"
        )


def _is_ours(directory: Path) -> bool:
    files = list(directory.glob("*.safetensors"))
    writers = {read_header(path).metadata.get("writer") for path in files}
    return writers == {WRITER}
