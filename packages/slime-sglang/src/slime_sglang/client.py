"""The HTTP interface of one engine, typed, with a deadline on every call."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
from slime_core.errors import EngineError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

_ADMIN_S = 60.0
_LOAD_S = 600.0
_PROBE_S = 5.0
_ATTEMPTS = 4
_FAILURES = (httpx.HTTPError, RuntimeError)
"""Of a request; the latter where another thread has closed the client, as ``stop`` does."""

MemoryTag = Literal["weights", "kv_cache", "cuda_graph"]


class SilentEngineError(EngineError):
    """An engine that did not answer within a request's deadline."""

    def __init__(self, message: str, url: str) -> None:
        super().__init__(message)
        self.url = url

    def __reduce__(self) -> tuple[type["SilentEngineError"], tuple[str, str]]:
        """Survive pickling between processes."""
        return SilentEngineError, (str(self), self.url)


class EngineClient:
    """Synchronous calls to one engine's server; not shared between threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Engines are on this machine or on the cluster's network: never behind a proxy.
        self._http = httpx.Client(base_url=self.url, timeout=_ADMIN_S, trust_env=False)

    def __enter__(self) -> "EngineClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def is_up(self) -> bool:
        """Whether the server answers its health check now."""
        try:
            return self._http.get("/health", timeout=_PROBE_S).is_success
        except _FAILURES:
            return False

    def generate(self, body: Mapping[str, Any], *, timeout_s: float = _ADMIN_S) -> dict[str, Any]:
        """One /generate request."""
        return self._call("/generate", body, timeout_s)

    def model_info(self) -> dict[str, Any]:
        """Model path, weight version and what the model can do."""
        return self._get("/model_info")

    def weight_version(self) -> str:
        """The version the engine answers with."""
        return str(self.model_info()["weight_version"])

    def server_info(self) -> dict[str, Any]:
        """The engine's resolved arguments and state."""
        return self._get("/server_info")

    def flush_cache(self) -> None:
        """Forget every cached prefix; refused while requests run, so asked again for a while."""
        self._idempotent("/flush_cache", {})

    def pause(self, mode: Literal["abort", "retract", "in_place"] = "abort") -> None:
        """Take no more work; running requests are aborted, put back, or frozen in place."""
        self._idempotent("/pause_generation", {"mode": mode})

    def resume(self) -> None:
        """Work again after ``pause``."""
        self._idempotent("/continue_generation", {})

    def abort(self, request_id: str | None = None) -> None:
        """Abort one request, or all of them."""
        every = request_id is None
        self._idempotent("/abort_request", {"rid": request_id or "", "abort_all": every})

    def release_memory(self, tags: Sequence[MemoryTag] | None = None) -> None:
        """Lend the engine's GPU memory; needs --enable-memory-saver."""
        self._call("/release_memory_occupation", {"tags": list(tags) if tags else None}, _ADMIN_S)

    def resume_memory(self, tags: Sequence[MemoryTag] | None = None) -> None:
        """Take the memory back."""
        self._call("/resume_memory_occupation", {"tags": list(tags) if tags else None}, _ADMIN_S)

    def update_from_tensor(self, payloads: Sequence[str], version: str | None = None) -> str:
        """Load one flattened bucket, one serialised copy per tensor-parallel rank."""
        body = {
            "serialized_named_tensors": list(payloads),
            "load_format": "flattened_bucket",
            "flush_cache": False,
            "weight_version": version,
        }
        return self._update("/update_weights_from_tensor", body)

    def update_from_collective(self, body: Mapping[str, Any], *, timeout_s: float = _LOAD_S) -> str:
        """Receive one flattened bucket that the sender broadcasts at the same time."""
        body = {**body, "flush_cache": False}
        return self._update("/update_weights_from_distributed", body, timeout_s)

    def update_from_disk(self, directory: str) -> str:
        """Load safetensors files; sets no version."""
        body = {"model_path": directory, "load_format": "safetensors", "flush_cache": False}
        return self._update("/update_weights_from_disk", body)

    def init_group(self, body: Mapping[str, Any], *, timeout_s: float = _ADMIN_S) -> None:
        """Join a collective group for weight updates."""
        self._update("/init_weights_update_group", body, timeout_s)

    def destroy_group(self, name: str) -> None:
        """Leave it."""
        self._call("/destroy_weights_update_group", {"group_name": name}, _ADMIN_S)

    def set_weight_version(self, version: str) -> None:
        """Name the weights that are loaded."""
        body = {"new_version": version, "abort_all_requests": False}
        self._idempotent("/update_weight_version", body)

    def _update(self, path: str, body: Mapping[str, Any], timeout_s: float = _LOAD_S) -> str:
        reply = self._call(path, body, timeout_s)
        message = str(reply.get("message", ""))
        if not reply.get("success"):
            raise EngineError(f"{self.url}{path} failed: {message}")
        return message

    def _get(self, path: str) -> dict[str, Any]:
        for attempt in _retrying():
            with attempt:
                return self._checked("GET", path, None, _ADMIN_S)
        raise AssertionError("tenacity returns or raises")

    def _idempotent(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in _retrying():
            with attempt:
                return self._checked("POST", path, body, _ADMIN_S)
        raise AssertionError("tenacity returns or raises")

    def _call(self, path: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        return self._checked("POST", path, body, timeout_s)

    def _checked(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise SilentEngineError(
                f"{method} {self.url}{path} was not answered within {timeout_s:.0f} s", self.url
            ) from error
        except _FAILURES as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise EngineError(f"{method} {self.url}{path} failed: {what}") from error
        if reply.is_error:
            raise EngineError(
                f"{method} {self.url}{path} answered {reply.status_code}: {message_of(reply)}"
            )
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        try:
            value = reply.json() if is_json else None
        except ValueError as error:
            raise EngineError(
                f"{method} {self.url}{path} answered with damaged JSON ({error}): {reply.text:.300}"
            ) from error
        return value if isinstance(value, dict) else {}


def message_of(reply: httpx.Response) -> str:
    """What an error reply says, shortened."""
    try:
        value = reply.json()
    except ValueError:
        return reply.text[:2000]
    if isinstance(value, dict):
        value = value.get("message") or value.get("error") or value
    return str(value)[:2000]


def _retrying() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(EngineError),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=0.1, max=2.0),
        reraise=True,
    )
