"""Engines that somebody else runs: found out about, checked, given weights, never ended."""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.errors import EngineError

from slime_sglang.client import EngineClient
from slime_sglang.rules import APART, ONE_VOICE
from slime_sglang.server.plugin import MARK
from slime_sglang.weights.session import EngineTarget

logger = logging.getLogger(__name__)

FLAG = "--rollout-external-engine-addrs"
_CHECK_EVERY_S = 10.0
_CHECKS = 3
"""Unanswered in a row, until an engine counts as lost."""
_END_S = 15.0
"""For the last check to end: it may wait to connect, and then for an answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine says of itself."""

    num_ranks: int
    model_path: str


class _Checks:
    """Asks an engine now and then whether it answers, in a thread: those who care wait for nothing.

    The thread alone uses the client from ``start`` to ``end``.
    """

    def __init__(self, client: EngineClient) -> None:
        self.num_unanswered = 0
        """In a row, up to now."""
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, name=f"ask {client.url}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def _ask(self) -> None:
        while not self._ended.wait(_CHECK_EVERY_S):
            self.num_unanswered = 0 if self._client.is_up() else self.num_unanswered + 1

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)


class ExternalEngine:
    """One engine at an address; the connection is ours, the process is not."""

    def __init__(self, address: str, model_path: Path) -> None:
        self.url = url_of(address)
        self.client = EngineClient(self.url)
        self._model_path = model_path
        self._found: Found | None = None
        self._checks = _Checks(self.client)

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
        self._checks.start()

    def check_alive(self) -> None:
        """Raise ``EngineError`` after some silence; returns at once, however long that lasts."""
        silent = self._checks.num_unanswered
        if silent >= _CHECKS:
            raise EngineError(
                f"{FLAG} {self.url}: the engine left {silent} health checks in a row unanswered, "
                f"one every {_CHECK_EVERY_S:g} s; it is not started again by the run: start it, "
                "then the run from its last checkpoint"
            )

    def stop(self) -> None:
        """Drop the connection; the engine goes on."""
        self._checks.end()
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
    wanted: dict[str, Any] = {"pp_size": 1, "disaggregation_mode": "null", **APART, **ONE_VOICE}
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
