"""What was said in one execution, in tokens, and which tokens come before the next turn."""

from collections.abc import Sequence
from typing import Any

from slime_core.data.chat import Message, Tokenizer
from slime_core.data.conversation import TokenLog
from slime_core.data.template_certificate import (
    ADVICE,
    THINK_END,
    Template,
    TemplateDriftError,
    continuation,
    next_tokens,
)
from slime_core.types import Sample

from slime_sglang.agents.reply import Turn
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.agents.trajectory import Trajectories

Tools = Sequence[Any] | None


class History:
    """The turns so far; whoever makes another one adds it to ``trajectories``."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer, settings: AgentSettings) -> None:
        self.trajectories = Trajectories()
        self._sample, self._tokenizer, self._settings = sample, tokenizer, settings

    def template(self, tools: Tools) -> Template:
        """How its conversations are rendered."""
        kwargs = self._settings.template_kwargs
        own = self._sample.apply_chat_template_kwargs
        return Template(self._tokenizer, tools or None, {**kwargs, **own})

    def before(self, prompt: str | Sequence[Message], tools: Tools) -> tuple[Turn | None, TokenLog]:
        """The turn that ``prompt`` goes on from, and all tokens before the next one.

        Raises:
            TemplateDriftError: the chat template rewrites the history, which may not be.
        """
        template = self.template(tools)
        if isinstance(prompt, str):
            parent, length = self.trajectories.find_text(prompt)
            ids = template.ids(prompt[length:])
            log = TokenLog(tuple(ids)) if parent is None else parent.log.add_environment(ids)
            return parent, log
        messages = list(prompt)
        parent, length = self.trajectories.find(messages, tools)
        if parent is None:
            return None, self._begin(template, messages)
        path = self.trajectories.path(parent)
        known = _with_reasoning(messages[:length], path)
        try:
            found = continuation(
                template, known[:-1], known[-1], messages[length:], written=parent.said.text
            )
            if found.drift is None or self._settings.template_drift == "keep":
                ids = next_tokens(template, found, parent.log.spans[-1].tokens[-1])
                return parent, parent.log.add_environment(ids)
            drift = TemplateDriftError(f"the chat template rewrites history: {found.drift}")
        except TemplateDriftError as error:
            drift = error
        if self._settings.template_drift == "fork":
            return None, self._begin(template, messages)
        raise TemplateDriftError(f"{drift}. {ADVICE}")

    def _begin(self, template: Template, messages: Sequence[Message]) -> TokenLog:
        own = self._sample.prompt
        same = len(self.trajectories) == 0 and isinstance(own, list) and own == list(messages)
        tokens = self._sample.tokens[: self._sample.prompt_length] if same else []
        return TokenLog(tuple(tokens or template.ids(template.text(messages, begin_turn=True))))


def _with_reasoning(messages: Sequence[Message], path: Sequence[Turn]) -> list[Message]:
    """``messages`` with the reasoning that the model wrote where a client left it out."""
    known = list(messages)
    for turn in path:
        message, text = known[turn.place], turn.said.text
        content = str(message.get("content") or "")
        if THINK_END in text and THINK_END not in content and not message.get("reasoning_content"):
            thought = text[: text.index(THINK_END) + len(THINK_END)]
            known[turn.place] = {**message, "content": f"{thought}\n\n{content.lstrip()}"}
    return known
