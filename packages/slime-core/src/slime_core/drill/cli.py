"""``slime-drill``: what does a run survive?"""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from slime_core.drill import report
from slime_core.drill.in_a_row import num_iterations, try_in_a_row
from slime_core.drill.kills import try_driver_kills
from slime_core.drill.plan import FAULTS, KINDS, PHASES, Cell, cells, driver_kills
from slime_core.drill.task import NUM_ITERATIONS, WATCHED, small_task
from slime_core.drill.tries import (
    Drill,
    Row,
    Undisturbed,
    run_undisturbed,
    try_cell,
)
from slime_core.errors import ConfigError, SlimeError

_ABOUT = """Run a command undisturbed, then once for every fault, and compare.

Words after -- are arguments of slime-train; a first word without a dash is another command. They
name neither --output-dir nor --save, --save-hf or --save-debug-rollout-data: the drill gives each
run its own. Without words a small task is made that takes half a minute on a CPU."""
_OURS = ("--output-dir", "--save", "--save-hf", "--save-debug-rollout-data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the drill; 0 when every run finished with no sample lost or trained twice."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:split])
    try:
        rows = _drill(options, words[split + 1 :])
    except (SlimeError, RuntimeError) as error:
        sys.stderr.write(f"slime-drill: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("slime-drill: interrupted; finished runs are kept\n")
        return 130
    _say("")
    for line in report.table(rows):
        _say(line)
    return int(any(row.failed for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slime-drill",
        usage="slime-drill [options] [-- <arguments of slime-train>]",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/drill"))
    for flag, all_of_them in (("kinds", KINDS), ("signals", FAULTS), ("phases", PHASES)):
        default = ",".join(all_of_them)
        parser.add_argument(f"--{flag}", default=default, help="(%(default)s)")
    parser.add_argument(
        "--driver-kills",
        type=int,
        metavar="N",
        help="instead of the cells: kill the driver N times and start it again each time",
    )
    parser.add_argument(
        "--in-a-row", action="store_true", help="all faults of one kind in one run: quicker"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (%(default)s)")
    parser.add_argument(
        "--timeout-s",
        type=float,
        help="for one start of the command (three undisturbed runs and three minutes)",
    )
    return parser


def _drill(options: argparse.Namespace, words: Sequence[str]) -> list[Row]:
    directory: Path = options.output_dir.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if taken := [flag for flag in _OURS if flag in words]:
        raise ConfigError(f"{', '.join(taken)}: the drill gives each run its own; leave it out")
    kills: int | None = options.driver_kills
    runs = [] if kills else _runs(options)
    at_least = 2 * kills if kills else 0
    if options.in_a_row and runs:
        at_least = num_iterations(max(map(len, runs)))
    command = _command(directory, words, at_least)
    expected = _undisturbed(Drill(command, directory, options.timeout_s or 3600.0))
    limit_s = options.timeout_s or 3 * expected.seconds + 180
    settings = {
        "words": [Path(command[0]).name, *words],
        "seed": options.seed,
        "undisturbed_s": round(expected.seconds, 1),
        "undisturbed_start_s": round(expected.start_s, 1),
        "undisturbed_weights": expected.outcome.weights,
        "undisturbed_samples": expected.outcome.samples.total(),
    }
    rows: list[Row] = []
    if kills:
        drill = Drill(command, directory, limit_s)
        rows.append(_kill_drivers(drill, kills, options.seed, expected))
        report.write(directory / report.FILE_NAME, settings, rows)
    watched = ("--use-fault-tolerance", *(() if words else WATCHED))
    drill = Drill((*command, *watched), directory, limit_s)
    for faults in runs:
        rows += _try(drill, faults, expected)
        report.write(directory / report.FILE_NAME, settings, rows)
    return rows


def _runs(options: argparse.Namespace) -> list[list[Cell]]:
    """The faults of each run: one, or with --in-a-row all of a kind."""
    planned = cells(*(_words(given) for given in (options.kinds, options.signals, options.phases)))
    if not options.in_a_row:
        return [[cell] for cell in planned]
    return [list(of_kind) for _, of_kind in groupby(planned, key=lambda cell: cell.kind)]


def _words(given: str) -> list[str]:
    return [word for word in given.split(",") if word]


def _undisturbed(drill: Drill) -> Undisturbed:
    _say(f"undisturbed: {' '.join(drill.command('undisturbed'))}")
    found = run_undisturbed(drill)
    _say(f"undisturbed: {found.seconds:.1f} s, of which {found.start_s:.1f} s until its loop")
    return found


def _command(directory: Path, words: Sequence[str], at_least: int) -> tuple[str, ...]:
    """What is run; slime-train is the one installed beside this command."""
    given = tuple(words) or small_task(directory / "task", max(NUM_ITERATIONS, at_least))
    if given[0].startswith("-"):
        given = ("slime-train", *given)
    beside = Path(sys.executable).parent / given[0]
    return (str(beside) if beside.exists() else given[0], *given[1:])


def _kill_drivers(drill: Drill, count: int, seed: int, expected: Undisturbed) -> Row:
    return try_driver_kills(drill, driver_kills(count, seed=seed), expected, _say)


def _try(drill: Drill, planned: Sequence[Cell], expected: Undisturbed) -> list[Row]:
    if len(planned) == 1:
        rows = [try_cell(drill, planned[0], expected)]
    else:
        rows = try_in_a_row(drill, planned, expected, _say)
    for row in rows:
        _say("  ".join(report.shown(row)))
    return rows


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
