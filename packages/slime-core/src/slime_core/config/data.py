"""Where prompts come from and how they are read."""

from dataclasses import dataclass
from typing import Any, Literal

from slime_core.config.flags import derived, flag, json_object

LARGEST_SEED = 2**31 - 1
"""NumPy takes seeds from 0 to 2**32 - 1, and each engine and pipeline stage adds its number."""


def _paths(words: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(word for occurrence in words for word in occurrence)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Prompt files and the meaning of their columns."""

    prompt_data: tuple[str, ...] = flag(default=(), repeat=True, parse=_paths)
    """Files of prompts (jsonl, json, csv, tsv, parquet, arrow) or folders of them, each optionally
    with a slice of its rows and how often an epoch sees them: path@[start:end]*weight."""
    input_key: str = "input"
    """Column of the prompt: a string or a list of messages. Where the flag is not given and the
    rows have no "input", the usual names are tried: prompt, question, messages, ..."""
    label_key: str | None = None
    """Column of the reference answer; where not given, the usual names are tried: label, answer,
    solution, ..."""
    compared_by: str | None = derived(default=None)
    """The --rm-type that compares responses with labels, where one does: every row needs one."""
    metadata_key: str = "metadata"
    """Column of a mapping that travels with every sample."""
    tool_key: str = "tools"
    """Column of tool definitions for the chat template."""
    multimodal_keys: dict[str, str] | None = flag(
        default=None, parse=json_object, planned="images, video and audio are not read yet"
    )
    """Columns of images, video or audio, a JSON object {"image": "column"}."""
    apply_chat_template: bool = False
    """Turn prompts into text with the tokenizer's chat template."""
    apply_chat_template_kwargs: dict[str, Any] = flag(factory=dict[str, Any], parse=json_object)
    """Keyword arguments of the chat template, a JSON object."""
    system_prompt: str | None = flag(default=None, ours=True)
    """System message of conversations that have none: text, or a file that holds it."""
    id_key: str = flag(default="id", ours=True)
    """Column of the rows' names, where there is one; they should differ within a file."""
    data_duplicate_ids: Literal["keep", "skip", "stop"] = flag(default="keep", ours=True)
    """What becomes of rows with a name that an earlier row of the file has: they are kept and
    counted, left out and counted, or end the run before it starts."""
    data_error_policy: Literal["stop", "skip"] = flag(default="stop", ours=True)
    """What becomes of rows that are no prompts (malformed, not UTF-8, without a key, empty): they
    end the run before it starts, or are left out and counted."""
    rollout_shuffle: bool = False
    """Shuffle the prompts anew in every epoch; with --streaming-data inside a window of rows."""
    rollout_seed: int = flag(default=42, at_least=0, at_most=LARGEST_SEED)
    """Seed of the shuffle and of the engines' sampling."""
    rollout_max_prompt_len: int | None = flag(default=None, at_least=1)
    """Leave out prompts longer than this many tokens."""
    num_epoch: int | None = flag(default=None, at_least=1)
    """Passes over the prompts; gives the number of iterations when --num-rollout is absent. All
    rows count, also those that are left out later, as too long or unusable."""
    data_source_path: str | None = None
    """Class (args) that replaces the prompt stream: get_samples(n), add_samples(groups); see
    slime_core.RolloutDataSource."""
    buffer_key: str | None = flag(default=None, ours=True)
    """Metadata key that the shipped selections for --buffer-filter-path read; "priority" for
    priority and "source" for stratified unless given."""
    start_rollout_id: int | None = flag(default=None, at_least=0)
    """First iteration; found from the checkpoint by default."""
    rollout_global_dataset: bool = flag(
        "--disable-rollout-global-dataset",
        default=True,
        negated="Do not read --prompt-data: the class of --data-source-path finds prompts itself.",
    )
    """One data set feeds the whole run; a class of --data-source-path may find prompts itself."""
    loss_mask_type: Literal["qwen", "qwen3", "qwen3_5", "distill_qwen"] = flag(
        default="qwen",
        planned={
            "qwen3_5": "use qwen or qwen3",
            "distill_qwen": "use qwen or qwen3",
        },
    )
    """How supervised fine-tuning finds the assistant's turns; they are found with the model's own
    chat template, whichever of the two is given."""
    num_data_workers: int = flag(default=0, at_least=0, ours=True)
    """Processes that render and tokenize prompts ahead; with 0 the run does it itself. The order
    is the same for any number."""
    streaming_data: bool = flag(default=False, ours=True)
    """Read prompts while training, with no more than a window of rows in memory."""
    streaming_window: int = flag(default=10_000, at_least=1, ours=True)
    """Rows in the window of --streaming-data, in which they are shuffled."""
