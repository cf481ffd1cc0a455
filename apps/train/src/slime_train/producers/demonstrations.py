"""Supervised fine-tuning: the groups of an iteration are rows of the data, answered there."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.data import sft
from slime_core.data.chat import Tokenizer
from slime_core.data.prompts import read_prompts
from slime_core.data.stream import PromptStream
from slime_core.interfaces import Metrics
from slime_core.types import SampleGroup
from slime_sglang.weights.session import EngineTarget

from slime_train.progress import Progress
from slime_train.run_config import RunConfig


class Demonstrations:
    """Takes rows from the prompt stream and masks what is not the assistant's."""

    progress: Progress | None = None

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._data, self._tokenizer = config.data, tokenizer
        self._num_groups = config.rollout.rollout_batch_size
        self._stream = PromptStream(
            list(read_prompts(config.data, sources=config.data.prompt_data)),
            config.rollout.n_samples_per_prompt,
            shuffle=config.data.rollout_shuffle,
            seed=config.data.rollout_seed,
        )

    def start(self) -> Sequence[EngineTarget]:
        """Nothing to start, nobody to publish to."""
        return ()

    def __len__(self) -> int:
        return len(self._stream)

    def produce(self, iteration: int) -> tuple[Sequence[SampleGroup], Metrics]:
        """The next rows, tokenized."""
        groups = self._stream.take(self._num_groups)
        for group in groups:
            for sample in group.samples:
                sft.complete(
                    sample,
                    self._tokenizer,
                    apply_chat_template=self._data.apply_chat_template,
                    template_kwargs=self._data.apply_chat_template_kwargs,
                )
        return groups, {}

    def evaluate(self, version: int) -> Metrics:
        """Fine-tuning has no engines to evaluate with."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there."""
        self._stream.load_state_dict(state)

    def stop(self) -> None:
        """Nothing was started."""
