"""An HTTP server with the endpoints of one engine, which answers as the test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class FakeEngine(ThreadingHTTPServer):
    """Answers every endpoint with what the test put into ``replies``."""

    daemon_threads = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.silent_about: str | None = None
        self.ended = threading.Event()
        self.on_call: Callable[[str, dict[str, Any]], None] = lambda path, body: None
        self.version = "0"
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append((path, body))
        self.on_call(path, body)
        if path == self.silent_about:
            self.ended.wait(10)
        if path == "/update_weight_version":
            self.version = body["new_version"]
        planned = self.replies.get(path)
        if planned:
            return planned.pop(0) if len(planned) > 1 else planned[0]
        if path == "/model_info":
            return 200, {"weight_version": self.version}
        return 200, {"success": True, "message": ""}


class _Handler(BaseHTTPRequestHandler):
    server: FakeEngine

    def log_message(self, *_args: Any) -> None:
        pass

    def _reply(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = orjson.loads(self.rfile.read(size)) if size else {}
        status, value = self.server.answer(self.path, body)
        data = orjson.dumps(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _reply  # noqa: N815


@contextmanager
def serving() -> Iterator[FakeEngine]:
    """One that listens while the block runs."""
    server = FakeEngine()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
