"""The real router in front of engines that only answer."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from slime_sglang.fleet import router as router_module
from slime_sglang.fleet.parts import RouterPart, Routing
from slime_sglang.fleet.router import Members, Router, RouterSpec
from slime_sglang.processes.ports import PortLease
from slime_sglang.processes.supervise import log_tail
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


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def engines():
    with serving(Handler) as first, serving(Handler) as second:
        yield [first, second]


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


def test_a_router_that_cannot_be_started_gives_its_ports_back(tmp_path, monkeypatch):
    leases = []

    class Kept(PortLease):
        def __init__(self, count, host):
            super().__init__(count, host)
            leases.append(self)

    monkeypatch.setattr(router_module, "PortLease", Kept)
    (tmp_path / "router.log").mkdir()
    with pytest.raises(OSError, match=r"router\.log"):
        Router(RouterSpec(worker_urls=(), log_dir=tmp_path))
    for port in leases[0].ports:
        with socket.socket() as anyone:
            anyone.bind(("127.0.0.1", port))  # refused while it is leased


def test_a_router_that_will_not_forget_an_engine_is_reported(caplog):
    class Refusing(Handler):
        def do_GET(self):
            self._say({"workers": [{"id": 1, "url": "http://gone"}]})

        def do_DELETE(self):
            self.send_error(500)

    with serving(Refusing) as url:
        members = Members(url)
        members.remove("http://gone")
        members.close()
    assert "the router was not told that http://gone is gone" in caplog.text


def test_an_engine_lost_while_the_run_ends_is_no_error(caplog):
    members = Members("http://127.0.0.1:9")
    members.close()
    members.remove("http://gone")
    assert not members.answers(1.0)
    assert members.healthy() == set()
