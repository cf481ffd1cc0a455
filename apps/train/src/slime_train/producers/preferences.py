"""Preference learning: rows with a chosen and a rejected answer; a batch counts pairs."""

from slime_core.data.chat import Tokenizer
from slime_core.data.opening import open_stream
from slime_core.data.pairs import complete_pair, pair_rows
from slime_core.types import SampleGroup

from slime_train.producers.recorded import Recorded
from slime_train.run_config import RunConfig


def preferences(config: RunConfig, tokenizer: Tokenizer) -> Recorded:
    """A group of two samples per row, for dpo_loss and rm_loss."""
    data = config.data

    def complete(group: SampleGroup) -> SampleGroup:
        return complete_pair(
            group,
            tokenizer,
            apply_chat_template=data.apply_chat_template,
            template_kwargs=data.apply_chat_template_kwargs,
            scored=config.policy_loss.loss_type == "rm_loss",
        )

    stream = open_stream(pair_rows(data, config.preference), data, 2)
    return Recorded(stream, config.rollout.rollout_batch_size, complete)
