"""The real router in front of engines that only answer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from slime_sglang.fleet.parts import RouterPart, Routing
from slime_sglang.fleet.router import Router, RouterSpec
from slime_sglang.fleet.supervise import log_tail
from slime_testing.runs import wait_for


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._say({"model_path": "model", "status": "ok"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._say({"text": str(self.server.server_port)})

    def _say(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def engines():
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def router(engines, tmp_path):
    router = Router(RouterSpec(worker_urls=engines[:1], log_dir=tmp_path))
    router.wait_ready(60)
    yield router
    router.stop()


def answered_by(router):
    reply = httpx.post(f"{router.url}/generate", json={"text": "?"}, timeout=30, trust_env=False)
    return f"http://127.0.0.1:{reply.json()['text']}"


def test_engines_come_and_go_and_a_new_router_knows_those_that_serve(router, engines, tmp_path):
    first, second = engines
    routing = Routing(router.members, router)
    routing.begin([first])
    part = RouterPart(router, routing)
    assert answered_by(router) == first
    routing.add(second)
    routing.add(second)
    routing.remove(first)
    assert wait_for(lambda: router.members.healthy() == {second}, 10)
    url, pid = router.url, part.pid
    part.start_again()
    assert (router.url, part.exit_code) == (url, None)
    assert part.pid != pid
    assert part.answers(10.0)
    assert wait_for(lambda: router.members.healthy() == {second}, 10)
    assert answered_by(router) == second
    assert log_tail(tmp_path / "router.log", 5) in part.last_words


def test_a_router_may_be_left_without_engines(router, engines):
    routing = Routing(router.members, router)
    routing.begin(engines[:1])
    routing.remove(engines[0])
    routing.restart()
    assert router.members.healthy() == set()
    routing.add(engines[1])
    assert answered_by(router) == engines[1]
