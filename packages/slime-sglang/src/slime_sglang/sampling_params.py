"""What an engine is told about one sample: the parameters of its request."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.config.evaluation import EvalConfig
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
    skip_special_tokens: bool = False
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None

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
    def of_evaluation(cls, config: EvalConfig, rollout: SamplingConfig) -> "Sampling":
        """For evaluation: what is not given falls back to the rollout's value."""
        return cls(
            temperature=_given(config.eval_temperature, rollout.rollout_temperature),
            top_p=_given(config.eval_top_p, rollout.rollout_top_p),
            top_k=_given(config.eval_top_k, rollout.rollout_top_k),
            max_response_len=_given(config.eval_max_response_len, rollout.rollout_max_response_len),
            max_context_len=_given(config.eval_max_context_len, rollout.rollout_max_context_len),
            min_new_tokens=config.eval_min_new_tokens,
            skip_special_tokens=rollout.rollout_skip_special_tokens,
            stop=rollout.rollout_stop,
            stop_token_ids=rollout.rollout_stop_token_ids,
        )

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
            "no_stop_trim": True,
            "spaces_between_special_tokens": False,
            "sampling_seed": seed,
        }
        if self.min_new_tokens is not None:
            params["min_new_tokens"] = min(self.min_new_tokens, left)
        return params


def sample_seed(*parts: object) -> int:
    """A 62-bit seed that depends on every part and on nothing else."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 2


def _given[T](value: T | None, fallback: T) -> T:
    return fallback if value is None else value
