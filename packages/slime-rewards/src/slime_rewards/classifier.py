"""Reward models that score a whole response: ``--rm-type sequence_classification``.

In this process with transformers, or behind SGLang (``--is-embedding``) at ``--rm-url``. A model
with one output gives its value; one with several gives a dictionary with the value of each under
its name, to choose from with --reward-key.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

from slime_core.errors import ConfigError
from slime_core.types import Sample

from slime_rewards.calls import Calls
from slime_rewards.config import RewardConfig
from slime_rewards.conversations import scored_text
from slime_rewards.remote import Server
from slime_rewards.verdict import RewardValue

_AT_ONCE = 16
_GATHER_S = 0.005
_Waiting = tuple[str, "asyncio.Future[list[float]]"]


class LocalClassifier:
    """A reward model in this process; what is asked at about the same time is one batch."""

    def __init__(self, path: str, calls: Calls) -> None:
        """Load the model.

        Raises:
            ConfigError: it cannot be loaded.
        """
        self._tokenizer, self._model = _loaded(path)
        self._pads = _can_pad(self._tokenizer, self._model.config)
        self._names = _names(self._model.config)
        self._calls = calls
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, sample: Sample) -> RewardValue:
        """The reward of a response.

        Raises:
            TimeoutError: the model took too long.
        """
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append((scored_text(sample, self._tokenizer), future))
        await asyncio.sleep(_GATHER_S)
        batch, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        if batch:  # which this response may or may not be in
            task = asyncio.create_task(self._score_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return _reward(await future, self._names)

    async def _score_batch(self, batch: list[_Waiting]) -> None:
        """Score some responses, whoever waits for them."""
        try:
            scores = await self._calls.run(self._score, [text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), score in zip(batch, scores, strict=True):
            if not future.done():
                future.set_result(score)

    def _score(self, texts: list[str]) -> list[list[float]]:
        at_once = _AT_ONCE if self._pads else 1
        parts = (texts[first : first + at_once] for first in range(0, len(texts), at_once))
        return [score for part in parts for score in self._score_together(part)]

    def _score_together(self, texts: list[str]) -> list[list[float]]:
        import torch

        inputs = self._tokenizer(
            texts,
            return_tensors="pt",
            padding=self._pads,
            truncation=True,
            max_length=self._longest(),
        ).to(self._model.device)
        with self._lock, torch.inference_mode():
            return cast("list[list[float]]", self._model(**inputs).logits.float().cpu().tolist())

    def _longest(self) -> int:
        """Tokens the model can read; of longer texts the beginning is left out."""
        config = getattr(self._model.config, "max_position_embeddings", 1 << 20)
        return min(int(config), int(min(self._tokenizer.model_max_length, 1 << 20)))


class ServedClassifier:
    """A reward model behind SGLang."""

    def __init__(self, config: RewardConfig, server: Server) -> None:
        assert config.rm_url is not None, "asked for by its address"
        self._url = config.rm_url.rstrip("/").removesuffix("/classify") + "/classify"
        self._server = server
        path = config.reward_model_path
        self._tokenizer = None if path is None else _tokenizer(path)

    async def __call__(self, sample: Sample) -> RewardValue:
        """The reward of a response.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refused.
            ValueError: the answer has no score.
        """
        answer = await self._server.ask(self._url, {"text": scored_text(sample, self._tokenizer)})
        found = cast("Any", answer[0] if isinstance(answer, list) and answer else answer)
        scores = found.get("embedding") if isinstance(found, dict) else None
        if isinstance(scores, int | float):
            scores = [scores]
        if not isinstance(scores, list) or not scores:
            raise ValueError(f"the reward model's answer has no `embedding`: {answer!r:.200}")
        return _reward([float(score) for score in scores], None)


def _reward(scores: list[float], names: list[str] | None) -> RewardValue:
    if len(scores) == 1:
        return scores[0]
    return dict(zip(names or [str(i) for i in range(len(scores))], scores, strict=True))


def _names(config: Any) -> list[str] | None:
    labels = getattr(config, "id2label", None)
    return [str(labels[index]) for index in sorted(labels)] if labels else None


def _tokenizer(path: str) -> Any:
    if not Path(path).expanduser().is_dir():
        raise ConfigError(f"--reward-model-path {path} is not a directory")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            "--reward-model-path needs transformers: pip install 'slime-rewards[models]'"
        ) from error
    try:
        found = cast("Any", AutoTokenizer).from_pretrained(path, truncation_side="left")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--reward-model-path {path} has no tokenizer: {error}") from error
    return found


def _loaded(path: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer(path)
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        model = cast("Any", AutoModelForSequenceClassification).from_pretrained(path, dtype="auto")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--reward-model-path {path} cannot be loaded: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tokenizer, model.to(device).eval()


def _can_pad(tokenizer: Any, config: Any) -> bool:
    """Have both pad with one token; False where there is none but the one that ends a response.

    transformers takes the score at the last token that is no padding. With the end for padding that
    would be the token before the end.
    """
    if config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    elif tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        config.pad_token_id = tokenizer.pad_token_id
    return config.pad_token_id is not None
