"""What the model said in one turn, as text that remembers its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from slime_core.data.chat import Message
from slime_core.data.conversation import TokenLog
from slime_core.types import Sample, Status

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Said:
    """One turn, taken apart: its text is content, reasoning and tool calls together."""

    text: str
    """Everything the model wrote, without the token that ended the turn."""
    finish_reason: FinishReason
    stopped_by: str | None = None
    """The stop string that ended it."""
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """In the form of the OpenAI interface: {"id", "type", "function": {"name", "arguments"}}."""
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    log_probs: tuple[float, ...] = ()
    token_texts: tuple[str, ...] = ()
    """One per log-probability where somebody asked for these; otherwise none."""

    @property
    def message(self) -> Message:
        """The turn as a message; what a client sends back."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        return message


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A turn of the model in the tree of everything it was asked in one execution."""

    log: TokenLog
    """All tokens up to the end of this turn."""
    said: Said
    parent: "Turn | None" = None
    place: int = 0
    """Position of its message in the conversation."""
    prompt: str | Sequence[Message] = field(default="", repr=False)
    """What it answers."""


class Reply(str):
    """Text of one turn, without the token that ended it.

    Stored or sent somewhere it is plain text; ``log`` has the tokens from which it came.
    """

    turn: Turn

    @classmethod
    def of(cls, turn: Turn) -> "Reply":
        """What ``turn`` said."""
        reply = cls(turn.said.text)
        reply.turn = turn
        return reply

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)

    @property
    def log(self) -> TokenLog:
        """Every token of the conversation up to here."""
        return self.turn.log

    @property
    def finish_reason(self) -> FinishReason:
        """Whether the model ended the turn or ran out of tokens."""
        return self.turn.said.finish_reason

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """Calls found by the tool-call parser; none unless tools were given."""
        return self.turn.said.tool_calls

    @property
    def message(self) -> Message:
        """To be appended to the conversation where tool calls were parsed."""
        return self.turn.said.message

    def into(self, sample: Sample) -> Sample:
        """Make ``sample`` the conversation up to here, ready to be trained on."""
        self.log.write_into(sample)
        sample.response = str(self)
        sample.status = status_of(self.turn)
        return sample


def status_of(turn: Turn) -> Status:
    """How a conversation that ends with ``turn`` ended."""
    return Status.TRUNCATED if turn.said.finish_reason == "length" else Status.COMPLETED


def plain(value: Any) -> Any:
    """``value`` with every ``Reply`` in it turned into text."""
    if isinstance(value, str):
        return str(value) if type(value) is Reply else value
    if isinstance(value, list):
        return [plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    return value
