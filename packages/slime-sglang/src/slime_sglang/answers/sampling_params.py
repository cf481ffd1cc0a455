"""What an engine is told about one sample: the parameters of its request."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from slime_core.config.eval_sets import EvalDataset
from slime_core.config.rollout import SamplingConfig
from slime_core.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one kind of response is drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    max_response_len: int
    max_context_len: int | None = None
    """Longest prompt plus response."""
    min_new_tokens: int | None = None
    repetition_penalty: float | None = None
    skip_special_tokens: bool = False
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    no_stop_trim: bool = True
    """Keep the text that ended the response."""

    @classmethod
    def of_rollout(cls, config: SamplingConfig) -> "Sampling":
        """For training."""
        return cls(
            temperature=config.rollout_temperature,
            top_p=config.rollout_top_p,
            top_k=config.rollout_top_k,
            max_response_len=config.rollout_max_response_len,
            max_context_len=config.rollout_max_context_len,
            skip_special_tokens=config.rollout_skip_special_tokens,
            stop=config.rollout_stop,
            stop_token_ids=config.rollout_stop_token_ids,
        )

    @classmethod
    def of_evaluation(cls, dataset: EvalDataset) -> "Sampling":
        """For evaluation on one set."""
        shared = {field.name for field in fields(cls)} & {field.name for field in fields(dataset)}
        return cls(**{name: getattr(dataset, name) for name in shared})

    def request(self, sample: Sample, *, seed: int) -> dict[str, Any]:
        """SGLang's ``sampling_params``; ``max_new_tokens`` may be 0 or less: nothing to do."""
        left = self.max_response_len - sample.response_length
        if self.max_context_len is not None:
            left = min(left, self.max_context_len - len(sample.tokens))
        params: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": left,
            "stop": list(self.stop) if self.stop else None,
            "stop_token_ids": list(self.stop_token_ids) if self.stop_token_ids else None,
            "skip_special_tokens": self.skip_special_tokens,
            "no_stop_trim": self.no_stop_trim,
            "spaces_between_special_tokens": False,
            "sampling_seed": seed,
        }
        if self.min_new_tokens is not None:
            params["min_new_tokens"] = min(self.min_new_tokens, left)
        if self.repetition_penalty is not None:
            params["repetition_penalty"] = self.repetition_penalty
        return params


def sample_seed(*parts: object) -> int:
    """A 62-bit seed that depends on every part and on nothing else."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 2
