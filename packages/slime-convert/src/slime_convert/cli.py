"""The ``slime-convert`` command: checkpoints described, converted, compared and cast."""

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from slime_core.errors import CheckpointError

from slime_convert.families import FAMILIES
from slime_convert.published import PRESETS

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

type Lines = list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 after one line about what is not in order."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        given = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], Lines] = given.run
        lines = run(given)
    except (CheckpointError, OSError) as error:
        text = " ".join(str(error).split("\n"))
        sys.stderr.write(f"slime-convert: {text}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("slime-convert: interrupted, nothing was left behind\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


def list_families(_given: argparse.Namespace) -> Lines:
    """Return one line per family and one per preset."""
    width = max(map(len, [*FAMILIES, *PRESETS])) + 2
    return [
        *(f"{name:{width}}{FAMILIES[name].title}" for name in sorted(FAMILIES)),
        "",
        "presets, scripts/models/<name>.sh",
        *(f"{name:{width}}{PRESETS[name]['model_type']}" for name in sorted(PRESETS)),
    ]


def _inspect(given: argparse.Namespace) -> Lines:
    from slime_convert.describe import describe

    return describe(given.directory, allow_pickle=given.allow_pickle)


def _hf_to_dist(given: argparse.Namespace) -> Lines:
    from slime_convert.dist.chunks import Layout
    from slime_convert.dist.from_hf import size_of, write_dist
    from slime_convert.dist.model import Model
    from slime_convert.hf.pickled import open_checkpoint
    from slime_convert.streaming.progress import bar

    layout = Layout(
        given.tensor_model_parallel_size,
        given.pipeline_model_parallel_size,
        given.make_vocab_size_divisible_by,
    )
    model = Model.of(given.hf)
    with open_checkpoint(given.hf, check_finite=True, allow_pickle=given.allow_pickle) as reader:
        reader.check(model.table)
        with bar("hf-to-dist", size_of(reader, model.table)) as progress:
            written = write_dist(reader, model, given.out, layout, progress=progress)
    return [f"{written}", f"give --load or --ref-load {given.out}"]


def _dist_to_hf(given: argparse.Namespace) -> Lines:
    from slime_convert.dist import checkpoint_in, dist_to_hf
    from slime_convert.dist.model import Model
    from slime_convert.dist.to_hf import size_in
    from slime_convert.streaming.progress import bar

    checkpoint = checkpoint_in(given.dist, given.step)
    with bar("dist-to-hf", size_in(checkpoint, Model.of(given.hf_config))) as progress:
        written = dist_to_hf(
            checkpoint,
            given.hf_config,
            given.out,
            max_shard_bytes=given.max_shard_size,
            progress=progress,
        )
    return [f"{written}"]


def _verify(given: argparse.Namespace) -> Lines:
    from slime_convert.dist import checkpoint_in
    from slime_convert.dist.from_hf import size_of
    from slime_convert.dist.model import Model
    from slime_convert.hf.pickled import open_checkpoint
    from slime_convert.streaming.progress import bar
    from slime_convert.verify import verify

    checkpoint = checkpoint_in(given.dist, given.step)
    with open_checkpoint(given.hf, allow_pickle=given.allow_pickle) as reader:
        table = Model.of(given.hf).table
        reader.check(table)
        with bar("verify", size_of(reader, table)) as progress:
            lines = verify(reader, checkpoint, progress=progress).lines()
    if given.logits:
        lines.append(_compared_logits(given.hf, checkpoint))
    return lines


def _compared_logits(hf: Path, checkpoint: Path) -> str:
    from slime_convert.dist import dist_to_hf
    from slime_convert.logits import TOKENS, largest_difference

    with tempfile.TemporaryDirectory(prefix="slime-convert-") as directory:
        back = dist_to_hf(checkpoint, hf, Path(directory) / "back")
        difference = largest_difference(hf, back)
    if difference:
        raise CheckpointError(f"logits of {hf} and {checkpoint} differ by up to {difference:g}")
    return f"logits    equal on {TOKENS} tokens in float32"


def _cast(given: argparse.Namespace) -> Lines:
    from slime_convert.cast import cast
    from slime_convert.hf import HfReader
    from slime_convert.streaming.progress import bar

    with HfReader(given.hf) as reader:
        total = sum(path.stat().st_size for path in reader.files)
    with bar("cast", total) as progress:
        written = cast(
            given.hf,
            given.out,
            given.dtype,
            max_shard_bytes=given.max_shard_size,
            progress=progress,
        )
    return [f"{written}"]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise CheckpointError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="slime-convert", description="Hugging Face and Megatron checkpoints, bit for bit."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], Lines], text: str) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    command("list", list_families, "list the model families and presets")
    one = command("inspect", _inspect, "say what a directory is, and whether it is whole")
    one.add_argument("directory", type=Path)
    _add_allow_pickle(one)

    one = command("hf-to-dist", _hf_to_dist, "convert Hugging Face weights to torch_dist")
    one.add_argument("--hf", type=Path, required=True, help="directory with config.json")
    one.add_argument("--out", type=Path, required=True, help="what --load will be given")
    for flag, default in (
        ("--tensor-model-parallel-size", 1),
        ("--pipeline-model-parallel-size", 1),
        ("--make-vocab-size-divisible-by", 128),
    ):
        one.add_argument(flag, type=int, default=default, help="any can be loaded with any other")
    _add_allow_pickle(one)

    one = command("dist-to-hf", _dist_to_hf, "convert a torch_dist checkpoint to Hugging Face")
    _add_dist(one)
    one.add_argument("--hf-config", type=Path, required=True, help="config.json and tokenizer")
    one.add_argument("--out", type=Path, required=True)
    _add_max_shard_size(one)

    one = command("verify", _verify, "compare a torch_dist checkpoint with Hugging Face weights")
    one.add_argument("--hf", type=Path, required=True)
    _add_dist(one)
    one.add_argument("--logits", action="store_true", help="compute with both, by transformers")
    _add_allow_pickle(one)

    one = command("cast", _cast, "write Hugging Face weights in another precision")
    one.add_argument("--hf", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--dtype", choices=("bf16", "fp8"), required=True)
    _add_max_shard_size(one)
    return parser


def _add_allow_pickle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read tensors from *.bin and *.pt; nothing in them is run",
    )


def _add_dist(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dist", type=Path, required=True, help="what --save wrote, or one checkpoint in it"
    )
    parser.add_argument("--step", type=int, help="which iteration, if not the newest")


def _add_max_shard_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shard-size", type=_size, default=5 * 10**9, help="of one file: 5GB, 500MB, 2GiB"
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.strip().upper())
    size = 0 if match is None else int(Fraction(match[1]) * _UNITS[match[2] or ""])
    if not 1 <= size <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB, 500MB or 2GiB")
    return size


def _terminate(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
