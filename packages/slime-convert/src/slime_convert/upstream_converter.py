"""``tools/convert_hf_to_torch_dist.py``: conversion with the command line of upstream's script.

Upstream starts one process per GPU with torchrun. Here nothing is computed in parallel: rank 0
writes, the others have nothing to do.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_core.errors import CheckpointError

from slime_convert import preset_arguments as presets

_SIZES = {
    "--tensor-model-parallel-size": "tensor",
    "--pipeline-model-parallel-size": "pipeline",
    "--make-vocab-size-divisible-by": "vocab_divisible_by",
}
_OWN = ("--hf-checkpoint", "--save", *_SIZES)


def main(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> int:
    """Convert, and return the exit code: 1 for anything that is not in order."""
    try:
        given = presets.read_flags(sys.argv[1:] if arguments is None else arguments)
        if int(environment.get("RANK", "0")) == 0:
            _convert(given)
    except (CheckpointError, OSError) as error:
        sys.stderr.write(f"convert_hf_to_torch_dist: {error}\n")
        return 1
    return 0


def _convert(given: presets.Given) -> None:
    from slime_convert.dist.chunks import Layout
    from slime_convert.dist.from_hf import hf_to_dist, size_of
    from slime_convert.dist.model import Model
    from slime_convert.hf import HfReader
    from slime_convert.streaming.progress import bar

    source, out = (_path(given, flag) for flag in ("--hf-checkpoint", "--save"))
    layout = Layout(
        **{name: _number(given, flag) for flag, name in _SIZES.items() if flag in given}
    )
    model = Model.of(source)
    problems = presets.contradictions(given, model.arguments)
    if problems:
        raise CheckpointError(f"{source} is another model: {'; '.join(problems)}")
    ignored = [flag for flag in presets.unknown(given) if flag not in _OWN]
    if ignored:
        sys.stderr.write(f"not about the architecture, ignored: {' '.join(ignored)}\n")
    with HfReader(source) as reader:
        reader.check(model.table)
        total = size_of(reader, model.table)
    with bar("converting", total) as progress:
        written = hf_to_dist(source, out, layout, progress=progress)
    sys.stdout.write(f"{written}\n")


def _path(given: presets.Given, flag: str) -> Path:
    value = given.get(flag)
    if value is None:
        raise CheckpointError(f"{flag} is missing: give it a directory")
    return Path(value)


def _number(given: presets.Given, flag: str) -> int:
    value = given[flag] or ""
    if not value.isdecimal() or int(value) < 1:
        raise CheckpointError(f"{flag} is {value!r}: it must be a number of at least 1")
    return int(value)
