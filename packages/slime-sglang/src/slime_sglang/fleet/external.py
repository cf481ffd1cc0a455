"""Engines that somebody else runs: found out about, checked, given weights, never ended."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.errors import EngineError

from slime_sglang.client import EngineClient
from slime_sglang.rules import APART
from slime_sglang.server.plugin import MARK
from slime_sglang.weights.session import EngineTarget

logger = logging.getLogger(__name__)

FLAG = "--rollout-external-engine-addrs"
_CHECK_EVERY_S = 10.0
_CHECKS = 3
"""Unanswered in a row, until an engine counts as lost."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine says of itself."""

    num_ranks: int
    model_path: str


class ExternalEngine:
    """One engine at an address; the connection is ours, the process is not."""

    def __init__(self, address: str, model_path: Path) -> None:
        self.url = url_of(address)
        self.client = EngineClient(self.url)
        self._model_path = model_path
        self._found: Found | None = None
        self._asked, self._unanswered = 0.0, 0

    @property
    def num_ranks(self) -> int:
        """Processes that hold a shard of the weights."""
        assert self._found is not None, "discover() comes first"
        return self._found.num_ranks

    def discover(self) -> None:
        """Learn its sizes; ``EngineError`` when it is not there or not usable."""
        try:
            info, model = self.client.server_info(), self.client.model_info()
        except EngineError as error:
            raise EngineError(
                f"{FLAG} {self.url}: no engine answers there ({error}): start it first, with "
                "slime-sglang installed beside SGLang"
            ) from error
        problem = unusable(info) or _other_model(model, self._model_path)
        if problem:
            raise EngineError(f"{FLAG} {self.url}: {problem}")
        self._found = Found(int(info.get("tp_size", 1)), str(info.get("model_path", "")))
        logger.info("%s: %s", self.url, self._found)

    def check_alive(self) -> None:
        """Ask now and then whether it answers; ``EngineError`` after some silence."""
        if time.monotonic() - self._asked < _CHECK_EVERY_S:
            return
        self._unanswered = 0 if self.client.is_up() else self._unanswered + 1
        self._asked = time.monotonic()
        if self._unanswered >= _CHECKS:
            raise EngineError(
                f"{FLAG} {self.url}: the engine does not answer any more; it is not started again "
                "by the run: start it, then the run from its last checkpoint"
            )

    def stop(self) -> None:
        """Drop the connection; the engine goes on."""
        self.client.close()


class ExternalPart:
    """Such an engine as a part of a run."""

    kind = "engine"
    is_up = True

    def __init__(self, address: str, model_path: Path) -> None:
        self.engine = ExternalEngine(address, model_path)
        self.quiet = False
        self.leave: Callable[[str], None] = lambda _: None
        self.join: Callable[[str], None] = lambda _: None

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.engine.url

    @property
    def target(self) -> EngineTarget:
        """What a publish needs to know of it."""
        return EngineTarget(self.engine.url, self.engine.num_ranks)

    def stop(self) -> None:
        """Leave it alone."""
        self.engine.stop()


def discover(addresses: Sequence[str], model_path: Path) -> list[ExternalPart]:
    """All of them; ``EngineError`` with every complaint there is."""
    parts = [ExternalPart(address, model_path) for address in addresses]
    problems: list[str] = []
    for part in parts:
        try:
            part.engine.discover()
        except EngineError as error:
            problems.append(str(error))
    if problems:
        for part in parts:
            part.stop()
        raise EngineError("\n".join(problems))
    return parts


def url_of(address: str) -> str:
    """``host:port`` as a URL."""
    return (address if "://" in address else f"http://{address}").rstrip("/")


def unusable(info: Mapping[str, Any]) -> str | None:
    """Why an engine with this /server_info cannot be published to; None if it can."""
    states: Sequence[Mapping[str, Any]] = info.get("internal_states") or [{}]
    if not all(MARK in state for state in states):
        return (
            "the engine runs without slime's plugin, which verifies weights: install slime-sglang "
            "where it runs, leave `slime` in SGLANG_PLUGINS if that is set, and start it again"
        )
    wanted: dict[str, Any] = {"pp_size": 1, "disaggregation_mode": "null", **APART}
    if not info.get("enable_dp_attention"):  # else they are its tensor-parallel ranks
        wanted["dp_size"] = 1
    for name, value in wanted.items():
        if info.get(name, value) != value:
            return f"the engine has {name} {info[name]}, and weights are published to {value} only"
    return None


def _other_model(model: Mapping[str, Any], path: Path) -> str | None:
    """Why its model is not that of the run."""
    served = model.get("architectures")
    try:
        wanted = json.loads((path / "config.json").read_text()).get("architectures")
    except (OSError, ValueError):
        return None
    if served and wanted and list(served) != list(wanted):
        return f"the engine serves {served[0]}, --hf-checkpoint {path} is {wanted[0]}"
    return None
