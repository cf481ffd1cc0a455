"""Data sources in the style of upstream: classes that users derive from.

A run asks the class given with --data-source-path through a ``user_source.UserSource``.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from slime_core.config.data import DataConfig
from slime_core.data import selection
from slime_core.data.opening import open_stream
from slime_core.data.plain_samples import lists_from_plain, plain_lists
from slime_core.data.prompts import prompt_rows
from slime_core.data.selection import Groups
from slime_core.data.stream import PromptStream
from slime_core.errors import DataError
from slime_core.plugins.plugin import load_plugin


class RolloutDataSource:
    """Groups of pending samples from --prompt-data; what is added back is dropped.

    Derive from it and give the class with --data-source-path. ``dataset`` is the stream of the
    prompt files; ``dataset.sample(n)`` are its next n groups.
    """

    def __init__(self, args: Any = None) -> None:
        self.args = args
        self.metadata: dict[str, Any] = {}
        """Kept in checkpoints."""

    @property
    def dataset(self) -> Any:
        """The stream of the prompt files, or what was assigned."""
        if "_dataset" not in self.__dict__:
            args = self.__dict__.get("args")
            stream = getattr(args, "prompt_stream", None)
            self.__dict__["_dataset"] = _stream_of(args) if stream is None else stream
        return self.__dict__["_dataset"]

    @dataset.setter
    def dataset(self, value: Any) -> None:
        self.__dict__["_dataset"] = value

    def __len__(self) -> int:
        return len(self.dataset) if self._reads_files() else 0

    def _reads_files(self) -> bool:
        """Whether there is a data set: not in a run with --disable-rollout-global-dataset."""
        args = self.__dict__.get("args")
        return "_dataset" in self.__dict__ or getattr(args, "prompt_stream", args) is not None

    def get_samples(self, num_samples: int) -> Groups:
        """That many groups, each of --n-samples-per-prompt samples of one prompt."""
        return self.dataset.sample(num_samples)

    def add_samples(self, samples: Groups) -> None:
        """Groups that were not finished, or that a hook returns; dropped."""

    def state_dict(self) -> dict[str, Any]:
        """Position, ``metadata``, and ``buffer`` where there is one, as plain data."""
        state: dict[str, Any] = {"metadata": getattr(self, "metadata", {})}
        if self._reads_files() and isinstance(self.dataset, PromptStream):
            state["stream"] = self.dataset.state_dict()
        if isinstance(getattr(self, "buffer", None), list):
            state["buffer"] = plain_lists(cast("Any", self).buffer)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.metadata = state["metadata"]
        if "stream" in state:
            self.dataset.load_state_dict(state["stream"])
        if "buffer" in state:
            self.buffer = lists_from_plain(state["buffer"])

    def save(self, rollout_id: int) -> None:
        """Write ``state_dict`` below --save; a run keeps it in its checkpoints anyway."""
        import torch

        from slime_core.data.plain_data import plain_copy

        state = plain_copy(self.state_dict(), f"{type(self).__name__}.state_dict(): ")
        path = _state_file(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)

    def load(self, rollout_id: int | None = None) -> None:
        """Read what ``save`` wrote, from below --load."""
        import torch

        if rollout_id is not None:
            path = _state_file(self.args.load, rollout_id)
            self.load_state_dict(torch.load(path, weights_only=True))


class RolloutDataSourceWithBuffer(RolloutDataSource):
    """The same, and what is added back is given out first.

    Override ``buffer_filter(self, args, buffer, num_samples)``, or upstream's form with
    ``rollout_id`` before ``buffer``, to choose; what it returns leaves the buffer.
    """

    def __init__(self, args: Any = None) -> None:
        super().__init__(args)
        self.buffer: Groups = []

    def get_samples(self, num_samples: int) -> Groups:
        """Groups of the buffer that ``buffer_filter`` chooses, then new ones."""
        select = selection.as_select(self.buffer_filter, f"{type(self).__name__}.buffer_filter")
        args, rollout_id = getattr(self, "args", None), getattr(self, "rollout_id", None)
        taken = selection.take(select, self.buffer, num_samples, args=args, rollout_id=rollout_id)
        missing = num_samples - len(taken)
        return taken + (super().get_samples(missing) if missing else [])

    def add_samples(self, samples: Groups) -> None:
        """Keep groups to be given out again."""
        self.buffer.extend(samples)

    def buffer_filter(
        self, args: Any, rollout_id: int | None, buffer: Groups, num_samples: int
    ) -> Groups:
        """What --buffer-filter-path chooses; the oldest unless it is given."""
        path = getattr(args, "buffer_filter_path", None)
        if path is None:
            return selection.oldest_first(args, rollout_id, buffer, num_samples)
        select = selection.as_select(load_plugin(path), path)
        return select(args, rollout_id, buffer, num_samples)


def _stream_of(args: Any) -> PromptStream:
    """The prompt files that ``args`` names, for a data source outside a run: no tokens."""
    given = {f.name: getattr(args, f.name) for f in fields(DataConfig) if hasattr(args, f.name)}
    data = DataConfig(**given)
    if not data.prompt_data or data.apply_chat_template:
        raise DataError(
            "a data source outside a run needs prompt_data in its args, without "
            "apply_chat_template: assign `dataset` for anything else"
        )
    return open_stream(prompt_rows(data), data, getattr(args, "n_samples_per_prompt", 1))


def _state_file(directory: str, rollout_id: int) -> Path:
    return Path(directory) / "rollout" / f"global_dataset_state_dict_{rollout_id}.pt"
