"""How many tokens of prompt and response an engine takes, found out before there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slime_core.config.data import DataConfig
from slime_core.config.eval_sets import EvalDataset
from slime_core.config.evaluation import EvalConfig
from slime_core.config.rollout import RolloutConfig, SamplingConfig
from slime_core.data.prompt_room import PromptRoom

from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.config import SGLangConfig

_KEYS = (
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "model_max_length",
    "max_position_embeddings",
)
"""Keys of config.json in the order in which SGLang asks for them."""
_COUNTED = ("llama3", "yarn", "longrope")
"""Kinds of rotary embeddings whose stretched length config.json gives already: transformers writes
the length before it beside their factor, and SGLang leaves the factor out then."""
_KEPT = 7
"""Tokens of the context that SGLang's scheduler keeps from a prompt."""


def model_context(hf_config: Mapping[str, Any]) -> int | None:
    """Tokens that SGLang has a model take; None where config.json does not say.

    Source: ``sglang.srt.utils.hf_transformers.get_context_length``.
    """
    config: Mapping[str, Any] = hf_config.get("text_config") or hf_config
    given = (config[key] for key in _KEYS if isinstance(config.get(key), int))
    length = next(given, None)
    return None if length is None else int(_factor(config) * length)


def _factor(config: Mapping[str, Any]) -> float:
    rope: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind in _COUNTED or "original_max_position_embeddings" in rope:
        return 1
    factor = rope.get("factor")
    return factor if isinstance(factor, int | float) else 1


def engine_context(hf_config: Mapping[str, Any], server: Mapping[str, Any]) -> int | None:
    """The same of the engines, with the settings that they are given."""
    return server.get("context_length") or model_context(hf_config)


@dataclass(frozen=True, slots=True)
class PromptRooms:
    """What prompts may be long, for training and for every evaluation set.

    There is no limit where prompts or requests are not slime's own, or where engines cut prompts
    off; that of engines which somebody else started is not known.
    """

    context: int | None
    rollout: RolloutConfig
    evaluation: EvalConfig

    @classmethod
    def of(
        cls,
        hf_config: Mapping[str, Any],
        engines: SGLangConfig,
        rollout: RolloutConfig,
        evaluation: EvalConfig,
    ) -> "PromptRooms":
        """Those of the engines that the run is going to start."""
        unknown = rollout.rollout_external_engine_addrs or engines.server.get("allow_auto_truncate")
        context = None if unknown else engine_context(hf_config, engines.server)
        return cls(context, rollout, evaluation)

    def of_training(self, sampling: SamplingConfig, data: DataConfig) -> PromptRoom | None:
        """For --prompt-data."""
        rollout = self.rollout
        asks = rollout.rollout_function_path or rollout.custom_generate_function_path
        own = asks or data.data_source_path
        return None if own else self._room(Sampling.of_rollout(sampling))

    def of_evaluation(self, dataset: EvalDataset) -> PromptRoom | None:
        """For one set."""
        asks = self.rollout.custom_generate_function_path or dataset.custom_generate_function_path
        own = asks or self.evaluation.eval_function_path
        return None if own else self._room(Sampling.of_evaluation(dataset))

    def _room(self, sampling: Sampling) -> PromptRoom | None:
        context, most = self.context, sampling.max_context_len
        if context is None:
            return None
        longest = context - _KEPT
        if most is not None and most <= context:
            return PromptRoom(longest, f"that the engines' context of {context} holds")
        response = sampling.max_response_len
        left = f"that the engines' context of {context} leaves beside a response of {response}"
        return PromptRoom(min(longest, context - response), left)
