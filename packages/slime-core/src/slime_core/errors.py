"""Every error slime raises on purpose; each also subclasses the builtin it refines."""

from collections.abc import Sequence


class SlimeError(Exception):
    """Base of all deliberate errors."""


class ConfigError(SlimeError, ValueError):
    """The user asked for something impossible; the message names the flag and the remedy."""


class ConfigErrors(ConfigError):  # noqa: N818 -- several errors, as the name says
    """Every problem of one command line, reported together."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    @property
    def told(self) -> str:
        """How many there are, and each on a line of its own."""
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        listed = "".join(f"  * {problem}\n" for problem in self.problems)
        return f"{count} with this command line\n{listed}"

    def __reduce__(self) -> tuple[type["ConfigErrors"], tuple[tuple[str, ...]]]:
        """Survive pickling between processes."""
        return ConfigErrors, (self.problems,)


class PluginError(SlimeError, ImportError):
    """A user-supplied function could not be loaded or has the wrong shape."""


class SampleError(SlimeError, ValueError):
    """A finished sample breaks one of the length invariants of ``Sample``."""


class ShapeError(SlimeError, ValueError):
    """A tensor given to a loss has another rank or length than the loss is made for."""


class DataError(SlimeError, ValueError):
    """A prompt file is missing, malformed or lacks a key, or a sample cannot be kept in a file."""


class CheckpointError(SlimeError, ValueError):
    """A checkpoint is absent, incomplete, or belongs to another model."""


class EngineError(SlimeError, RuntimeError):
    """A rollout engine or the router did not start, died, or answered with an error."""


class TrackingError(SlimeError, OSError):
    """The record of a run's numbers cannot be written."""


class WeightSyncError(SlimeError, RuntimeError):
    """Engines do not hold the weights they were sent; names the first tensor that differs.

    ``silent``: addresses of engines that did not answer in time.
    """

    def __init__(self, message: str, silent: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.silent = tuple(silent)

    def __reduce__(self) -> tuple[type["WeightSyncError"], tuple[str, tuple[str, ...]]]:
        """Survive pickling between processes."""
        return WeightSyncError, (str(self), self.silent)
