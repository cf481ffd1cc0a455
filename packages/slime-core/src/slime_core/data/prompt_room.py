"""How long a prompt may be for the engines that are to answer it."""

from dataclasses import dataclass

from slime_core.data.faults import BEYOND_CONTEXT, RowError


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """The longest prompt that engines take; a longer one would be refused once they run."""

    longest: int
    """In tokens."""
    why: str
    """What leaves so many, as in "that a context of 4096 leaves"."""

    def require(self, num_tokens: int, place: str) -> None:
        """Raise ``RowError`` for a prompt of more tokens."""
        if num_tokens > self.longest:
            told = f"{place}: the prompt has {num_tokens} tokens, more than the {self.longest}"
            raise RowError(BEYOND_CONTEXT, f"{told} {self.why}")
