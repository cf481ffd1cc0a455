"""Where prompts come from and how they are read."""

from dataclasses import dataclass
from typing import Any, Literal

from slime_core.config.flags import flag, json_object


def _paths(words: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(word for occurrence in words for word in occurrence)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Prompt files and the meaning of their columns."""

    prompt_data: tuple[str, ...] = flag(default=(), repeat=True, parse=_paths)
    """jsonl or parquet files of prompts, each optionally with a slice of rows: path@[start:end]."""
    input_key: str = "input"
    """Column of the prompt: a string or a list of messages. Where the flag is not given and the
    rows have no "input", the usual names are tried: prompt, question, messages, ..."""
    label_key: str | None = None
    """Column of the reference answer; where not given, the usual names are tried: label, answer,
    solution, ..."""
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
    rollout_shuffle: bool = False
    """Shuffle the prompts anew in every epoch."""
    rollout_seed: int = 42
    """Seed of the shuffle and of the engines' sampling."""
    rollout_max_prompt_len: int | None = flag(default=None, at_least=1)
    """Leave out prompts longer than this many tokens."""
    num_epoch: int | None = flag(default=None, at_least=1)
    """Passes over the prompts; gives the number of iterations when --num-rollout is absent."""
    data_source_path: str | None = flag(
        default=None,
        planned="prompts come from --prompt-data: leave it out",
        accepts=(
            "slime.rollout.data_source.RolloutDataSource",
            "slime.rollout.data_source.RolloutDataSourceWithBuffer",
        ),
    )
    """Class that replaces the prompt stream."""
    start_rollout_id: int | None = flag(default=None, at_least=0)
    """First iteration; found from the checkpoint by default."""
    rollout_global_dataset: bool = flag(
        "--disable-rollout-global-dataset",
        default=True,
        negated=True,
        planned="one prompt stream feeds the run: leave it out",
    )
    """One data set feeds the whole run."""
    loss_mask_type: Literal["qwen", "qwen3", "qwen3_5", "distill_qwen"] = flag(
        default="qwen",
        planned={
            "qwen3_5": "use qwen or qwen3",
            "distill_qwen": "use qwen or qwen3",
        },
    )
    """How supervised fine-tuning finds the assistant's turns; they are found with the model's own
    chat template, whichever of the two is given."""
    num_data_workers: int = flag(
        default=1, at_least=1, ours=True, planned="prompts are read in one process"
    )
    """Processes that read prompts."""
    streaming_data: bool = flag(
        default=False, ours=True, planned="prompts are read into memory before the run"
    )
    """Read prompt files while training instead of before."""
