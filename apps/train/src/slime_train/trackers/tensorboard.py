"""TensorBoard files, by TensorBoard's own writer (torch's wrapper would import torch here)."""

import time
from pathlib import Path

from slime_core.interfaces import Beginning, Metrics
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_S = 5


class TensorBoardTracker:
    """Writes scalars that `tensorboard --logdir` shows while the run lasts."""

    def __init__(self, directory: Path) -> None:
        self._writer = EventFileWriter(str(directory), flush_secs=_FLUSH_S)

    def begin(self, at: Beginning) -> None:
        """Have TensorBoard hide what older files of the directory have of later steps."""
        self._writer.add_event(Event(step=at.step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=at.step, session_log=start))  # as torch's purge_step

    def log(self, step: int, metrics: Metrics) -> None:
        """Add one event that holds all of ``metrics``."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()
