"""The tokens of a conversation as they were read and written; its text is only a view of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slime_core.data.chat import Tokenizer
from slime_core.errors import DataError
from slime_core.types import Sample

UNWRITTEN = -1
"""Version of a token that no known weights wrote: a tool's, or an environment's."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens in a row that one side wrote: the model in one turn, or its environment."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] | None = None
    """One per token where the model wrote; None where the environment did."""
    version: str = ""
    """Weights that wrote it."""
    trained: bool = True

    @property
    def is_model(self) -> bool:
        """Whether the policy sampled these tokens."""
        return self.log_probs is not None


@dataclass(frozen=True, slots=True)
class TokenLog:
    """A prompt and the spans that followed it; grows at the end only, nothing in it changes.

    Growing returns a new log, so that branches of a conversation share what they have in common.
    """

    prompt: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """Prompt and response."""
        return [*self.prompt, *(token for span in self.spans for token in span.tokens)]

    @property
    def response_length(self) -> int:
        """Tokens behind the prompt, those of the environment included."""
        return sum(len(span.tokens) for span in self.spans)

    def add_model(
        self, tokens: Iterable[int], log_probs: Iterable[float], version: str = ""
    ) -> "TokenLog":
        """The log with what the model sampled next.

        Raises:
            DataError: unless every token has its log-probability.
        """
        span = Span(tuple(tokens), tuple(log_probs), version)
        if len(span.tokens) != len(span.log_probs or ()):
            raise DataError(
                f"{len(span.tokens)} tokens of a turn came with {len(span.log_probs or ())} "
                "log-probabilities: what the model wrote needs one each"
            )
        return replace(self, spans=(*self.spans, span))

    def add_environment(self, tokens: Iterable[int]) -> "TokenLog":
        """The log with what a tool, a user or the chat template said next; never trained on."""
        span = Span(tuple(tokens), trained=False)
        return replace(self, spans=(*self.spans, span)) if span.tokens else self

    def untrained(self, num_spans: int) -> "TokenLog":
        """The log with its first spans for context only: another sample trains on them."""
        head = (replace(span, trained=False) for span in self.spans[:num_spans])
        return replace(self, spans=(*head, *self.spans[num_spans:]))

    def text(self, tokenizer: Tokenizer) -> str:
        """The response, read off its tokens."""
        ids = self.tokens[len(self.prompt) :]
        return tokenizer.decode(ids, skip_special_tokens=False)

    def write_into(self, sample: Sample) -> None:
        """Set everything that ``sample`` says about tokens."""
        versions = [(span, _number(span.version)) for span in self.spans]
        sample.tokens = self.tokens
        sample.response_length = self.response_length
        sample.loss_mask = [
            int(span.trained and span.is_model) for span in self.spans for _ in span.tokens
        ]
        sample.rollout_log_probs = [
            value for span in self.spans for value in span.log_probs or (0.0,) * len(span.tokens)
        ]
        sample.token_versions = [number for span, number in versions for _ in span.tokens]
        sample.weight_versions = _changes([span.version for span in self.spans if span.is_model])


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else UNWRITTEN


def _changes(versions: Sequence[str]) -> list[str]:
    return [v for i, v in enumerate(versions) if not i or versions[i - 1] != v]
