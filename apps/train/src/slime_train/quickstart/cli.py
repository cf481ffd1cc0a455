"""``slime-quickstart``: make a model and a task, run ``slime-train`` twice, report."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slime_core.config.data import LARGEST_SEED
from slime_core.errors import ConfigError, SlimeError
from slime_core.files.aside import set_aside
from slime_core.processes.sentinel import owned_processes

from slime_train.quickstart import commands
from slime_train.quickstart.report import Durations, read_curves, write_summary
from slime_train.quickstart.task import write_task
from slime_train.trackers import METRICS_FILE

MARKER = ".slime-quickstart"
"""A directory that holds this file was made by this command and may be moved aside."""


class StageError(SlimeError, RuntimeError):
    """One of the runs ended with an error of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="slime-quickstart",
        description="Warm up a small model and train it by reinforcement learning, on a CPU.",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs/quickstart"), help="(%(default)s)"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="0 or more (%(default)s)")
    parser.add_argument(
        "--stop-after", choices=("data", "warm-up"), help="stop there, to go on with runs of yours"
    )
    options = parser.parse_args(argv)
    directory: Path = options.output_dir.resolve()
    try:
        with owned_processes():
            quickstart(directory, seed=options.seed, stop_after=options.stop_after)
    except SlimeError as error:
        sys.stderr.write(f"slime-quickstart: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("slime-quickstart: interrupted\n")
        return 130
    return 0


def _seed(text: str) -> int:
    """What both runs take for --seed and --rollout-seed."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expects a number from 0 to {LARGEST_SEED}, got {text}")
    return int(text)


def quickstart(directory: Path, *, seed: int, stop_after: str | None = None) -> None:
    """Make everything in ``directory``, train, and say what came of it."""
    begin = time.monotonic()
    prepare(directory)
    say(f"making a model with random weights and an arithmetic task in {directory}")
    model = write_model(directory / "model", seed=seed)
    task = write_task(directory / "data", seed=seed)
    if stop_after == "data":
        return
    warm_up, grpo = directory / "warm-up", directory / "grpo"
    first = run("warm-up", commands.warm_up(model, task, warm_up, seed=seed))
    if stop_after == "warm-up":
        return
    command = commands.reinforce(warm_up / "hf", task, grpo, seed=seed)
    second = run("reinforcement learning", command)
    curves = read_curves(grpo / METRICS_FILE, commands.EVALUATION_SET)
    curves.draw(directory / "rewards.png")
    outcome = curves.outcome()
    durations = Durations(
        seconds=round(time.monotonic() - begin, 1),
        seconds_warm_up=round(first, 1),
        seconds_reinforce=round(second, 1),
    )
    write_summary(directory / "summary.json", outcome, durations, seed=seed)
    say(
        f"accuracy on held-out problems: {outcome.accuracy_before:.3f} after the warm-up, "
        f"{outcome.accuracy_after:.3f} after reinforcement learning "
        f"({durations.seconds:.0f} s in all)\n"
        f"written: {directory / 'summary.json'} and {directory / 'rewards.png'}\n"
        f"look closer: tensorboard --logdir {directory}"
    )


def prepare(directory: Path) -> None:
    """Make ``directory``; what an earlier quickstart left there moves aside, and that is said.

    Raises:
        ConfigError: something else is there.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output-dir {directory} is a file: name a directory")
    if directory.exists() and any(directory.iterdir()):
        if not (directory / MARKER).exists():
            raise ConfigError(
                f"--output-dir {directory} holds files that are not a quickstart's: "
                "name a new or empty directory"
            )
        if any(path.name != MARKER for path in directory.iterdir()):
            say(f"what an earlier run left in {directory} is now in {_set_aside(directory)}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).touch()


def _set_aside(directory: Path) -> Path:
    try:
        return set_aside(directory)
    except OSError as error:
        raise ConfigError(
            f"--output-dir {directory} holds an earlier quickstart, which cannot be moved to "
            f"{error.filename2} ({error.strerror}): name another directory"
        ) from error


def write_model(directory: Path, *, seed: int) -> Path:
    """Write the untrained model (imports torch, so only here)."""
    from slime_train.quickstart.model import write_small

    # Kept whole by the tokenizer, they make prompts and answers half as long.
    return write_small(directory, words=("system", "user", "assistant", "\\boxed{"), seed=seed)


def run(stage: str, words: Sequence[str]) -> float:
    """Show and run one command line; return how many seconds it took."""
    say(f"{stage}:\n\n{commands.printable(words)}\n")
    begin = time.monotonic()
    # The command installed beside this one, also where the shell's PATH has another or none.
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], check=False)  # waits: it bounds its own waits
    if done.returncode != 0:
        raise StageError(f"{stage} ended with exit code {done.returncode}")
    return time.monotonic() - begin


def say(text: str) -> None:
    """Speak to the terminal in the order in which things happen."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
