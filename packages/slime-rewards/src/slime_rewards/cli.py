"""``slime-rewards grade``: responses in, rewards out."""

import argparse
import json
import math
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TextIO, cast

from slime_core.errors import PluginError
from slime_core.plugins.forms import is_plain
from slime_core.plugins.functions import load_hook

from slime_rewards import graders
from slime_rewards.config import BOXED
from slime_rewards.sandbox import Limits
from slime_rewards.turn_end import without_end
from slime_rewards.verdict import Outcome, Question, Verdict, sent_label
from slime_rewards.workers import Workers

_AHEAD = 1_000
"""Rows read before the verdict on the first of them is written."""


class RowError(ValueError):
    """A row that cannot be graded, with its line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        grader = _grader(arguments)
    except (ValueError, PluginError) as error:
        sys.stderr.write(f"slime-rewards: {error}\n")
        return 1
    workers = Workers(
        num_workers=arguments.workers,
        time_limit_s=arguments.timeout,
        limits=Limits(memory_bytes=arguments.memory_mb << 20),
    )
    try:
        _grade(sys.stdin.buffer, sys.stdout, workers, grader, seed=arguments.seed)
    except RowError as error:
        sys.stderr.write(f"slime-rewards: {error}\n")
        return 1
    finally:
        workers.close()
    return 0


def entry() -> None:
    """The command as installed."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slime-rewards", description="Score responses.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    grade = commands.add_parser(
        "grade",
        help="grade rows of JSON",
        description="Reads one JSON object a line on stdin (response, label, metadata) and writes "
        "one on stdout (reward, outcome, error, seconds), in the same order.",
    )
    which = grade.add_mutually_exclusive_group(required=True)
    which.add_argument("--rm-type", help=f"{', '.join(graders.NAMES)}, random; also boxed_NAME")
    which.add_argument("--custom-rm-path", help="a function (response, label, metadata)")
    grade.add_argument("--workers", type=_positive, help="how many rows at once")
    grade.add_argument("--timeout", type=_seconds, default=5.0, help="seconds for one row")
    grade.add_argument("--memory-mb", type=_positive, default=4096, help="of one worker")
    grade.add_argument("--seed", type=int, default=0, help="of the type random")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return number


def _grader(arguments: argparse.Namespace) -> str:
    """What is asked for, once it is known to exist."""
    if arguments.custom_rm_path is not None:
        function = load_hook("custom_rm_path", arguments.custom_rm_path)
        if not is_plain(function):
            raise ValueError(
                f"--custom-rm-path {arguments.custom_rm_path}: the command takes functions "
                "(response, label, metadata), not asynchronous"
            )
        return arguments.custom_rm_path
    _check(arguments.rm_type, "--rm-type")
    return arguments.rm_type


def _check(rm_type: object, where: str) -> None:
    known = (*graders.NAMES, "random")
    if not isinstance(rm_type, str) or rm_type.removeprefix(BOXED) not in known:
        raise ValueError(
            f"{where} {rm_type} is unknown; there are {', '.join(known)}, each also as {BOXED}NAME"
        )


def _grade(
    lines: Iterable[bytes], out: TextIO, workers: Workers, grader: str, *, seed: int
) -> None:
    """Write verdicts in the order of ``lines``; those before a malformed one are written."""
    pending: deque[Future[Verdict]] = deque()
    chance = random.Random(seed)
    try:
        for question in _questions(lines, grader):
            pending.append(_submitted(question, workers, chance))
            while pending and (pending[0].done() or len(pending) >= _AHEAD):
                # waits: graders have time limits
                _write(pending.popleft().result(), out)
    finally:
        while pending:  # waits: graders have time limits
            _write(pending.popleft().result(), out)


def _questions(lines: Iterable[bytes], grader: str) -> Iterator[Question]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _question(line, grader)
            except (TypeError, ValueError, RecursionError) as error:
                raise RowError(f"line {number}: {error}") from error


def _question(line: bytes, grader: str) -> Question:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a row is an object with response, label, metadata, not {row!r:.60}")
    found = cast("dict[str, Any]", row)
    response, label = found.get("response"), found.get("label")
    metadata = found.get("metadata") or {}
    if not isinstance(response, str):
        raise TypeError(f"response is {response!r:.60}: give text")
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata is {metadata!r:.60}: give an object")
    own = cast("dict[str, Any]", metadata).get("rm_type")
    if own is not None:
        _check(own, "metadata rm_type")
    return Question(
        grader=own or grader,
        response=without_end(response),
        label=sent_label(label),
        metadata=cast("dict[str, Any]", metadata),
    )


def _submitted(question: Question, workers: Workers, chance: random.Random) -> "Future[Verdict]":
    if question.grader.removeprefix(BOXED) != "random":
        return workers.submit(question)
    done: Future[Verdict] = Future()
    done.set_result(Verdict(outcome=Outcome.VALUE, reward=float(chance.getrandbits(1))))
    return done


def _write(verdict: Verdict, out: TextIO) -> None:
    row = {
        "reward": verdict.reward,
        "outcome": verdict.outcome.value,
        "error": verdict.error,
        "seconds": round(verdict.seconds, 6),
    }
    out.write(json.dumps(row) + "\n")
    out.flush()
