"""A reward server: POST {"prompt", "response", "label"}, get a number or a dictionary."""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ANSWER = re.compile(r"\\boxed\{(\d+)\}")


def score(row: dict[str, Any]) -> dict[str, float]:
    """The share of digits that are right, and whether all are."""
    found, label = _ANSWER.findall(row["response"]), str(row["label"])
    said = found[-1] if found else ""
    right = sum(a == b for a, b in zip(said, label, strict=False)) / max(len(said), len(label))
    return {"digits": right, "exact": float(said == label)}


class Handler(BaseHTTPRequestHandler):
    """Answers every POST with a score."""

    def do_POST(self) -> None:
        """Score one response."""
        row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(score(row)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of single requests."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
