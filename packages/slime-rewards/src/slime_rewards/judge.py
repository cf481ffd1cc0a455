"""A model that reads a response and writes a score: ``--rm-type judge``."""

import re
from pathlib import Path
from typing import Any

from slime_core.errors import ConfigError
from slime_core.types import Sample

from slime_rewards.config import RewardConfig
from slime_rewards.conversations import as_text
from slime_rewards.remote import Server
from slime_rewards.turn_end import without_end

PROMPT = """\
Judge an answer. Think briefly, then end with one line "Score: N", where N is a number from 0
(useless or wrong) to 10 (correct and complete).

Question:
{prompt}

Answer:
{response}

Reference answer, if there is one:
{label}
"""
_FIELD = re.compile(r"\{(prompt|response|label)\}")


class Judge:
    """Asks a chat model about every response; its last score, as a share of the highest."""

    def __init__(self, config: RewardConfig, server: Server) -> None:
        """Read the question.

        Raises:
            ConfigError: it or the pattern of scores is of no use.
        """
        self._config = config
        self._server = server
        self._prompt = _question(config.judge_prompt)
        self._score = _pattern(config.judge_score_pattern)
        self.router_url: str | None = None
        """The run's own engines."""

    async def __call__(self, sample: Sample) -> float:
        """The reward of a response.

        Raises:
            httpx.HTTPError: the judge cannot be reached.
            TimeoutError: its answer was cut off.
            ValueError: there is no score in its answer, or one out of range.
        """
        url = self._config.judge_url or self.router_url
        if url is None:
            raise ValueError("no engines to ask: give the judge's address as --judge-url")
        message = {"role": "user", "content": self._ask(sample)}
        payload = {
            "model": self._config.judge_model,
            "messages": [message],
            "max_tokens": self._config.judge_max_tokens,
            "temperature": 0.0,
        }
        base = url.rstrip("/").removesuffix("/v1")
        answer = await self._server.ask(f"{base}/v1/chat/completions", payload)
        return self._read(answer)

    def _ask(self, sample: Sample) -> str:
        """The question about one response; braces in it stay as they are."""
        label = "" if sample.label is None else str(sample.label)
        response = without_end(sample.response)
        fields = {"prompt": as_text(sample.prompt), "response": response, "label": label}
        return _FIELD.sub(lambda found: fields[found[1]], self._prompt)

    def _read(self, answer: Any) -> float:
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"the judge's answer is no chat completion: {answer!r:.200}"
            ) from error
        if choice.get("finish_reason") == "abort":
            raise TimeoutError("the judge's answer was aborted")
        scores = list(self._score.finditer(text))
        if not scores:
            raise ValueError(f"no score in the judge's answer {text[-200:]!r}")
        score = float(scores[-1][1])
        if not 0 <= score <= self._config.judge_max_score:
            raise ValueError(f"the judge gave {score:g} of {self._config.judge_max_score:g}")
        return score / self._config.judge_max_score


def _question(path: str | None) -> str:
    if path is None:
        return PROMPT
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--judge-prompt {path} cannot be read: {error}") from error
    if "{response}" not in text:
        raise ConfigError(f"--judge-prompt {path} has no {{response}}: what is to be judged?")
    return text


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"--judge-score-pattern {text} is no expression: {error}") from error
    if not pattern.groups:
        raise ConfigError(f"--judge-score-pattern {text} has no group (...) around the score")
    return pattern
