"""The tree of turns of one execution, found again by what a request repeats of it."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from slime_core.data.chat import Message
from slime_core.types import Sample

from slime_sglang.agents.reply import Said, Turn, plain, status_of

_NOT_SAID = ("cache_control", "id", "index", "reasoning_content", "refusal", "annotations")
"""Keys that clients add to a message or leave out without saying anything else."""


class Trajectories:
    """Grows by one turn a request; a request that repeats no known history begins a new tree."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._by_history: dict[bytes, list[Turn]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def num_calls(self) -> int:
        """Tool calls in all turns."""
        return sum(len(turn.said.tool_calls) for turn in self._turns)

    def find(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[Turn | None, int]:
        """The last turn that ``messages`` repeat exactly, and how many messages that covers."""
        chain = list(_chain(messages, tools))
        for length in range(len(chain), 0, -1):
            same = self._by_history.get(chain[length - 1])
            if same and same[-1].place == length - 1:
                return same[-1], length
        return None, 0

    def find_text(self, text: str) -> tuple[Turn | None, int]:
        """The same for a prompt that is text, and how many characters that covers."""
        found = [
            (turn, len(turn.prompt) + len(turn.said.text))
            for turn in self._turns
            if isinstance(turn.prompt, str) and text.startswith(turn.prompt + turn.said.text)
        ]
        return max(found, key=lambda pair: pair[1], default=(None, 0))

    def add(self, turn: Turn, tools: Sequence[Any] | None) -> None:
        """Remember ``turn``; of equal histories the newest is the one found."""
        self._turns.append(turn)
        if isinstance(turn.prompt, str):
            return
        for message in _spellings(turn.said):
            *_, key = _chain([*turn.prompt, message], tools)
            self._by_history.setdefault(key, []).append(turn)

    def forget(self, turn: Turn) -> None:
        """Leave out ``turn``, as if it had not been said, unless another one follows it."""
        if turn not in self.leaves():
            return
        self._turns.remove(turn)
        for same in self._by_history.values():
            while turn in same:
                same.remove(turn)

    def path(self, turn: Turn | None) -> list[Turn]:
        """From the first turn of a conversation to ``turn``."""
        path: list[Turn] = []
        while turn is not None:
            path.append(turn)
            turn = turn.parent
        return path[::-1]

    def leaves(self) -> list[Turn]:
        """Turns that nothing followed, in order."""
        inner = {turn.parent for turn in self._turns}
        return [turn for turn in self._turns if turn not in inner]

    def samples(self, origin: Sample) -> list[Sample]:
        """One sample per leaf; what leaves have in common is trained on in the first of them.

        The first leaf becomes ``origin`` itself, the others are copies of it: they share its
        ``rollout_id`` and its reward.
        """
        leaves = self.leaves()
        segments = [origin, *(_copy(origin) for _ in leaves[1:])]
        trained: set[Turn] = set()
        for segment, leaf in zip(segments, leaves, strict=True):
            path = self.path(leaf)
            shared = [turn for turn in path if turn in trained]
            trained.update(path)
            log = leaf.log.untrained(len(shared[-1].log.spans)) if shared else leaf.log
            log.write_into(segment)
        return segments


def tell(segment: Sample, leaf: Turn) -> None:
    """Let a segment say how its conversation ended, and what was said in it."""
    segment.status = status_of(leaf)
    if not isinstance(leaf.prompt, str):
        segment.metadata["messages"] = plain([*leaf.prompt, leaf.said.message])


def _copy(origin: Sample) -> Sample:
    segment = copy.copy(origin)
    segment.metadata = copy.deepcopy(origin.metadata)
    segment.metadata.pop("prefix_cache", None)
    return segment


def _spellings(said: Said) -> list[Message]:
    """The ways in which a client may send the turn back: whole, without reasoning, parsed."""
    texts = dict.fromkeys((said.text, said.text.rpartition("</think>")[2]))
    return [said.message, *({"role": "assistant", "content": text} for text in texts)]


def _chain(messages: Sequence[Message], tools: Sequence[Any] | None) -> Iterator[bytes]:
    """For each message, a digest of it and all before it."""
    digest = _digest(b"", plain(list(tools or ())))
    for message in messages:
        digest = _digest(digest, _meaning(message))
        yield digest


def _digest(before: bytes, value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(before + text.encode(), digest_size=16).digest()


def _meaning(message: Message) -> dict[str, Any]:
    if message.get("role") != "assistant":
        return {key: value for key, value in message.items() if key not in _NOT_SAID}
    calls = cast("Sequence[Mapping[str, Any]]", message.get("tool_calls") or ())
    return {
        "role": "assistant",
        "content": str(message.get("content") or "").strip(),
        "calls": [_call(call.get("function") or {}) for call in calls],
    }


def _call(function: Mapping[str, Any]) -> tuple[Any, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    return function.get("name"), arguments
