"""The real router in front of engines that only answer."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from slime_core.errors import EngineError
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet import router as router_module
from slime_sglang.fleet import routing as routing_module
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.parts import EnginePart, RouterPart
from slime_sglang.fleet.router import Members, Router, RouterSpec
from slime_sglang.fleet.routing import Routing
from slime_sglang.fleet.spec import FleetSpec
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
def serving(handler, **state):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state)
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


def test_engines_are_reached_past_a_proxy_of_the_environment(engines, tmp_path, monkeypatch):
    with PortLease(1) as nobody:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.ports[0]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        router = Router(RouterSpec(worker_urls=engines[:1], log_dir=tmp_path))
        try:
            router.wait_ready(30)
            assert answered_by(router) == engines[0]
        finally:
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


def test_a_new_router_is_not_kept_waiting_by_an_engine_that_turns_out_to_be_lost(router, engines):
    first, second = engines
    routing = Routing(router.members, router)
    with PortLease(1) as nobody:
        lost = f"http://127.0.0.1:{nobody.ports[0]}"
        routing.begin([first, lost])
        with ThreadPoolExecutor() as threads:
            restart, began = threads.submit(routing.restart), time.monotonic()
            assert wait_for(lambda: router.members.healthy() == {first}, 30)
            assert not wait_for(restart.done, 0.5), "nobody has noticed yet"
            addition = threads.submit(routing.add, second)
            routing.remove(lost)
            restart.result(30)
            addition.result(30)
        assert time.monotonic() - began < 60
        assert routing.serving == (first, second)
        assert router.members.healthy() == {first, second}


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


class Registry(Handler):
    """Knows two engines; fails as often as it is told to, then does what it is asked."""

    def do_GET(self):
        healthy = [{"id": u, "url": u, "is_healthy": True} for u in self.server.engines]
        self._say({"workers": healthy})

    def do_DELETE(self):
        if self._failed():
            return
        self.server.engines.remove(self.path.removeprefix("/workers/"))
        self._say({})

    def do_POST(self):
        url = json.loads(self.rfile.read(int(self.headers["content-length"])))["url"]
        if self._failed():
            return
        self.server.engines.append(url)
        self._say({})

    def _failed(self):
        self.server.num_failures -= 1
        if self.server.num_failures >= 0:
            self.send_error(500)
        return self.server.num_failures >= 0


@contextmanager
def registry(num_failures, monkeypatch):
    monkeypatch.setattr(routing_module, "_TELL_AGAIN_S", 0.01)
    with serving(Registry, engines=["a", "b"], num_failures=num_failures) as url:
        members = Members(url)
        routing = Routing(members, None)
        routing.begin(["a", "b"])
        yield routing, members
        members.close()


def test_a_router_that_fails_to_forget_an_engine_is_told_again(monkeypatch):
    with registry(2, monkeypatch) as (routing, members):
        routing.remove("a")
        assert members.healthy() == {"b"}
        assert routing.serving == ("b",)


def test_what_a_router_could_not_be_told_it_is_told_at_the_next_change(monkeypatch, caplog):
    with registry(3, monkeypatch) as (routing, members):
        routing.remove("a")
        assert "the router was not told that a is gone" in caplog.text
        assert members.healthy() == {"a", "b"}
        routing.add("c")
        assert members.healthy() == {"b", "c"}


def test_an_engine_that_is_back_at_its_address_is_not_removed_again(monkeypatch):
    with registry(3, monkeypatch) as (routing, members):
        routing.remove("a")
        routing.add("a")
        routing.add("c")
        assert members.healthy() == {"a", "b", "c"}


def test_a_router_that_goes_on_without_the_run_is_told_that_its_engines_end(tmp_path):
    with serving(Registry, engines=["a", "b"], num_failures=0) as url:
        port = int(url.rpartition(":")[2])
        config = SGLangConfig(sglang_router_ip="127.0.0.1", sglang_router_port=port)
        spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=config)
        members, ended = Members(url), []
        part = EnginePart.__new__(EnginePart)  # without a process
        part.engine = SimpleNamespace(url="a", stop=lambda: ended.append(members.healthy()))
        engines = Engines(spec)
        engines._parts = [part]
        engines.stop()
        assert ended == [{"b"}]
        members.close()


def test_a_router_that_fails_to_take_up_an_engine_is_asked_again(monkeypatch):
    with registry(2, monkeypatch) as (routing, members):
        routing.add("c")
        assert members.healthy() == {"a", "b", "c"}


class Slow(Handler):
    """Takes what it was told up only when it is asked the fifth time."""

    def do_GET(self):
        self.server.num_asked += 1
        known = self.server.told if self.server.num_asked >= 5 else []
        self._say({"workers": [{"id": url, "url": url, "is_healthy": True} for url in known]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append(json.loads(body)["url"])
        self._say({})


def test_a_router_that_takes_its_time_is_told_of_an_engine_once():
    told = []
    with serving(Slow, told=told, num_asked=0) as url:
        members = Members(url)
        members.add("a")
        members.close()
    assert told == ["a"]


def test_a_router_that_never_takes_up_an_engine_is_reported_with_what_it_says(monkeypatch):
    monkeypatch.setattr(router_module, "_CHANGE_S", 0.2)
    with (
        registry(10**9, monkeypatch) as (routing, _),
        pytest.raises(EngineError, match=r"did not take up the engine c in 0 s: .*500"),
    ):
        routing.add("c")


def test_a_router_that_says_a_byte_now_and_then_does_not_answer_in_time():
    """The timeout is one for all of it, not one for each byte."""

    class Dripping(Handler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "10000")
            self.end_headers()
            for _ in range(10000):
                self.wfile.write(b".")
                self.wfile.flush()
                if self.server.ended.wait(0.05):
                    return

    ended = threading.Event()
    with serving(Dripping, ended=ended) as url:
        members, began = Members(url), time.monotonic()
        assert not members.answers(0.3)
        assert time.monotonic() - began < 60, "of 500 s that all bytes take"
        engine = EnginePart.__new__(EnginePart)  # without a process
        engine.engine = SimpleNamespace(url=url)
        assert not engine._says("/health_generate", 0.3)
        assert time.monotonic() - began < 120
        ended.set()
        members.close()


def test_an_engine_lost_while_the_run_ends_is_no_error(caplog):
    members = Members("http://127.0.0.1:9")
    members.close()
    with pytest.raises(EngineError, match="was not told that http://gone is gone"):
        members.remove("http://gone")
    assert not members.answers(1.0)
    assert members.healthy() == set()
