"""The class given with --data-source-path, asked as the stream of the prompt files is."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from slime_core.config.data import DataConfig
from slime_core.config.flat import FlatArgs
from slime_core.data.buffer import Selection
from slime_core.data.opening import open_stream
from slime_core.data.plain_samples import lists_from_plain, plain_lists
from slime_core.data.reading import RowReader
from slime_core.data.selection import Groups
from slime_core.data.source import RolloutDataSource
from slime_core.data.stream import PromptStream
from slime_core.errors import DataError, PluginError
from slime_core.plugins.mistakes import told
from slime_core.plugins.plugin import load_plugin
from slime_core.prompt_ledger import PromptLedger
from slime_core.types import Sample, SampleGroup

_FIRST_NUMBER = 1 << 40
"""Of groups and samples that a class leaves unnumbered: beyond those of the prompt files."""


class UserSource:
    """A ``PromptSource`` that asks an object with get_samples and add_samples."""

    def __init__(self, source: Any, name: str, stream: PromptStream | None = None) -> None:
        self.source = source
        self._stream = stream
        self._name = name
        self.ledger = PromptLedger()
        self._num_made = 0
        self._iteration: int | None = None

    def __len__(self) -> int:
        return len(self.source) if hasattr(self.source, "__len__") else 0

    def begin(self, iteration: int) -> None:
        """The iteration that groups are taken for from now on: the class's ``rollout_id``."""
        self._iteration = iteration
        self.source.rollout_id = iteration

    def take(self, num_groups: int) -> list[SampleGroup]:
        """What the class returns, numbered where it left that out."""
        groups = [self._group(samples) for samples in self.get_samples(num_groups)]
        repeated = [i for i, n in Counter(g.group_index for g in groups).items() if n > 1]
        if not groups or repeated:
            what = f"group_index {repeated[0]} twice" if repeated else "no samples"
            raise DataError(f"{self._name}: get_samples({num_groups}) returned {what}")
        self.ledger.take(groups)
        return groups

    def give_back(self, groups: Sequence[SampleGroup]) -> None:
        """Hand them to the class, which may keep them or not."""
        self.ledger.give_back(groups)
        self.source.add_samples([list(group.samples) for group in groups])

    def add(self, groups: Sequence[SampleGroup]) -> None:
        """Hand it groups that did not come from ``take``, or are done with."""
        self.ledger.add(groups)
        self.source.add_samples([list(group.samples) for group in groups])

    def get_samples(self, num_samples: int) -> Groups:
        """What the class returns, checked."""
        found = self.source.get_samples(num_samples)
        if not isinstance(found, list | tuple):
            raise DataError(
                f"{self._name}: get_samples must return a list of groups, each a list of "
                f"slime_core.Sample that is not empty; it returned {found!r:.200}"
            )
        for group in found:
            if not isinstance(group, list) or not group or not _all_samples(cast("Any", group)):
                raise DataError(
                    f"{self._name}: get_samples must return a list of groups, each a list of "
                    f"slime_core.Sample that is not empty; one of them is {group!r:.200}"
                )
        return list(found)

    def add_samples(self, samples: Groups) -> None:
        """``add``, of lists."""
        self.add([self._group(group) for group in samples])

    def settle(self) -> None:
        """Check that every prompt given out is accounted for; raises ``DataError``.

        A class without a list called ``buffer`` is believed to keep what it was given.
        """
        buffer: Any = getattr(self.source, "buffer", None)
        waiting = self.ledger.returned if buffer is None else [g[0].group_index for g in buffer]
        if getattr(type(self.source), "add_samples", None) is RolloutDataSource.add_samples:
            waiting = ()
        self.ledger.settle(waiting)

    def metrics(self) -> dict[str, float]:
        """The books, and rows that were left out of the files."""
        files = {} if self._stream is None else self._stream.metrics()
        return files | self.ledger.metrics()

    def close(self) -> None:
        """End the processes that read ahead, and the class where it wants to be closed."""
        if self._stream is not None:
            self._stream.close()
        if hasattr(self.source, "close"):
            self.source.close()

    def state_dict(self) -> dict[str, Any]:
        """What the class says of itself, its buffer, and the books.

        A ``save`` of the class's own is called as well, with the iteration it has come to.
        """
        state: dict[str, Any] = {
            "num_made": self._num_made,
            "iteration": self._iteration,
            "ledger": self.ledger.state_dict(),
        }
        if hasattr(self.source, "state_dict"):
            state["source"] = self.source.state_dict()
        elif isinstance(getattr(self.source, "buffer", None), list):
            state["buffer"] = plain_lists(self.source.buffer)
        if self._iteration is not None and self._has_own("save"):
            self.source.save(self._iteration)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; a ``load`` of the class's own is called last."""
        if "num_made" not in state:
            raise DataError(
                f"the checkpoint was written without --data-source-path {self._name}: leave it "
                "out, or add --finetune to take the weights and start the data anew"
            )
        self._num_made = state["num_made"]
        self._iteration = state["iteration"]
        self.ledger.load_state_dict(state["ledger"])
        if "source" in state:
            self.source.load_state_dict(state["source"])
        if "buffer" in state:
            self.source.buffer = lists_from_plain(state["buffer"])
        if self._iteration is not None and self._has_own("load"):
            self.source.load(self._iteration)

    def _has_own(self, name: str) -> bool:
        method = getattr(type(self.source), name, None)
        return method is not None and method is not getattr(RolloutDataSource, name)

    def _group(self, samples: list[Sample]) -> SampleGroup:
        index = samples[0].group_index
        if index is None:
            index = _FIRST_NUMBER + self._num_made
        for sample in samples:
            sample.group_index = index
            number = _FIRST_NUMBER + self._num_made
            self._num_made += 1
            # A class may number its samples anew in each group: executions are the whole run's.
            sample.rollout_id = number if sample.rollout_id is None else sample.rollout_id
            sample.index = number if sample.index is None else sample.index
        return SampleGroup(index, tuple(samples))


AnySource = PromptStream | UserSource
"""What a run takes its prompts from."""


def open_source(
    reader: RowReader,
    data: DataConfig,
    n_samples_per_prompt: int,
    *,
    select: Selection,
    flat: Mapping[str, Any],
) -> AnySource:
    """The stream of the prompt files, or the class of --data-source-path around it.

    Raises:
        DataError: rows that cannot be used, or no prompts at all.
        PluginError: the class cannot be used.
    """
    stream = None
    if data.rollout_global_dataset or data.data_source_path is None:
        stream = open_stream(reader, data, n_samples_per_prompt, select=select)
        if data.data_source_path is None:
            return stream
    return user_source(str(data.data_source_path), flat, stream)


def user_source(spec: str, flat: Mapping[str, Any], stream: PromptStream | None) -> UserSource:
    """The class that ``spec`` names, made with ``args``; ``args.prompt_stream`` is ``stream``.

    It is made here and nowhere else, in the process that asks it for samples: it may hold what
    cannot be moved or had twice, such as a connection or a cursor.

    Raises:
        PluginError: it is no class with get_samples and add_samples, wants other arguments, or
            raises when it is made; with the lines of its own that led there.
    """
    cls = load_source(spec)
    args = FlatArgs({**flat, "prompt_stream": stream})
    arguments = _arguments(spec, cls, args)
    try:
        source = cls(*arguments)
    except (Exception, SystemExit) as error:
        shown = f"{cls.__name__}({'args' if arguments else ''})"
        raise PluginError(f"--data-source-path {spec}: {shown} raised {told(error)}") from error
    if isinstance(source, RolloutDataSource) and "args" not in vars(source):
        source.args = args  # its __init__ did not call ours
    return UserSource(source, spec, stream)


def load_source(spec: str) -> type:
    """The class that ``spec`` names, which can be made with ``args``.

    Raises:
        PluginError: as ``user_source``.
    """
    cls = load_plugin(spec)
    missing = [name for name in ("get_samples", "add_samples") if not hasattr(cls, name)]
    if not inspect.isclass(cls) or missing:
        raise PluginError(
            f"--data-source-path {spec} must be a class with get_samples(num_samples) and "
            f"add_samples(samples), but {f'has no {missing[0]}' if missing else 'is a function'}"
        )
    for one, other in (("state_dict", "load_state_dict"), ("save", "load")):
        if hasattr(cls, one) and not hasattr(cls, other):
            raise PluginError(
                f"--data-source-path {spec} has {one} and no {other}: a run could not go on from "
                "its checkpoints; write both, or neither"
            )
    _arguments(spec, cls, FlatArgs({}))
    return cls


def _arguments(spec: str, cls: type, args: FlatArgs) -> tuple[FlatArgs, ...]:
    signature = inspect.signature(cls)
    for arguments in ((args,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    raise PluginError(f"--data-source-path {spec} must be made as C(args), but is C{signature}")


def _all_samples(group: list[Any]) -> bool:
    return all(isinstance(sample, Sample) for sample in group)
