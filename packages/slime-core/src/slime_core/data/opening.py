"""The stream of groups that --prompt-data means."""

from slime_core.config.data import DataConfig
from slime_core.data.buffer import Selection, oldest_first
from slime_core.data.loading import load
from slime_core.data.reading import RowReader
from slime_core.data.stream import Cursor, LoadedPrompts, PromptStream
from slime_core.data.streaming import StreamedPrompts


def open_stream(
    reader: RowReader,
    data: DataConfig,
    n_samples_per_prompt: int,
    *,
    select: Selection = oldest_first,
) -> PromptStream:
    """Prompts in memory, or read on demand with --streaming-data.

    Raises:
        DataError: rows that cannot be used, or no prompts at all.
    """
    cursor: Cursor = (
        StreamedPrompts(reader, data, sources=data.prompt_data)
        if data.streaming_data
        else LoadedPrompts(
            load(reader, data, sources=data.prompt_data),
            shuffle=data.rollout_shuffle,
            seed=data.rollout_seed,
        )
    )
    return PromptStream(cursor, n_samples_per_prompt, select=select)
