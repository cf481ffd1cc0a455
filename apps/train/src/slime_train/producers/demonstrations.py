"""Supervised fine-tuning: rows with the answer to learn."""

from slime_core.data import sft
from slime_core.data.chat import Tokenizer
from slime_core.data.opening import open_stream
from slime_core.data.prompts import prompt_rows
from slime_core.types import SampleGroup

from slime_train.producers.recorded import Recorded
from slime_train.run_config import RunConfig


def demonstrations(config: RunConfig, tokenizer: Tokenizer) -> Recorded:
    """Answers as they are, with everything masked that is not the assistant's."""
    data = config.data

    def complete(group: SampleGroup) -> SampleGroup:
        for sample in group.samples:
            sft.complete(
                sample,
                tokenizer,
                apply_chat_template=data.apply_chat_template,
                template_kwargs=data.apply_chat_template_kwargs,
            )
        return group

    num_samples = config.rollout.n_samples_per_prompt
    stream = open_stream(prompt_rows(data, answered=True), data, num_samples)
    return Recorded(stream, config.rollout.rollout_batch_size, complete)
