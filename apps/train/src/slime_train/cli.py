"""``slime-train`` and ``slime-train-async``: from words to a run.

Imports neither torch nor Ray nor an engine.
"""

import sys
from collections.abc import Iterable, Sequence
from signal import SIGINT

from slime_core.errors import ConfigErrors

from slime_train.help import HELPS, help_on
from slime_train.runtime import env

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (2: it cannot be run as given)."""
    words = list(sys.argv[1:] if argv is None else argv)
    wanted = next((place for place, word in enumerate(words) if word in HELPS), None)
    if wanted is not None or not words:
        _print(help_on(*words[wanted:] or ["--help"]))
        return 0
    try:
        return _configured(words)
    except ConfigErrors as errors:
        sys.stderr.write(f"slime-train: {errors.told}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\nslime-train: interrupted before anything was started\n")
        return 128 + SIGINT


def main_async(argv: Sequence[str] | None = None) -> int:
    """``slime-train-async``: the same, with generation one rollout ahead unless told otherwise."""
    words = list(sys.argv[1:] if argv is None else argv)
    return main(["--async-buffer-size", "1", *words] if words else words)


def _configured(words: Sequence[str]) -> int:
    # Here, as --help would take twice as long with them.
    from slime_core.hooks.user_functions import problems
    from slime_core.reports.run_record import RunRecord

    from slime_train.actor_critic import CRITIC
    from slime_train.dump import dump
    from slime_train.facts import gather
    from slime_train.resolve import resolve
    from slime_train.roles import split_roles
    from slime_train.sources import read_sources

    raw = read_sources(words)
    critic = split_roles(raw)[1] if raw.value("megatron_config_path") else None
    resolved = resolve(raw, gather(raw), critic and gather(critic, CRITIC), also=problems)
    for notice in resolved.notices:
        sys.stderr.write(f"slime-train: note: {notice}\n")
    if raw.value("dump_config"):
        _print(dump(resolved))
        return 0
    env.prepare()
    from slime_train.run import run  # imports Ray, which reads the environment then

    return run(resolved.config, RunRecord("slime-train", words, tuple(dump(resolved))))


def _print(lines: Iterable[str]) -> None:
    """Write lines; a reader that stops early (``| head``) is no error."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    sys.exit(main())
