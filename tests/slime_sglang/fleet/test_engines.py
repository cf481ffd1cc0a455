import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slime_core.config.cluster import ClusterConfig
from slime_core.config.machines import machines
from slime_core.errors import EngineError
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.parts import EnginePart
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.fleet.starting import Start
from slime_sglang.processes.supervise import wait_until
from slime_sglang.server.launch import EngineSpec, Launch


def part(name: str, url: str, *, is_up: bool = True) -> EnginePart:
    made = EnginePart.__new__(EnginePart)  # without a process
    made.name, made.is_up = name, is_up
    made.engine = SimpleNamespace(url=url)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class Started:
    """An engine that came up."""

    def __init__(self, spec: EngineSpec, launch: Launch) -> None:
        self.url, self.killed = f"http://{spec.name}", False
        self.process = SimpleNamespace(log_path=spec.log_dir / "engine.log")

    def kill(self) -> None:
        self.killed = True

    def wait_ready(self, deadline_s: float) -> None: ...


@pytest.mark.parametrize("at_once", [True, False])
def test_an_engine_whose_weights_are_its_own_gets_requests_as_soon_as_it_is_back(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Started)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    made = EnginePart(spec.engine(0), 1.0, serves_at_once=at_once)
    told: list[tuple[str, str]] = []
    made.leave = lambda url: told.append(("leave", url))
    made.join = lambda url: told.append(("join", url))
    made.start_again()
    assert told == [("leave", made.url), ("join", made.url)][: 1 + at_once]
    assert (made.is_up, made.quiet) == (True, False)


def test_an_engine_that_waits_for_memory_is_not_started_for_a_run_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Counted(Started):
        def __init__(self, spec: EngineSpec, launch: Launch) -> None:
            super().__init__(spec, launch)
            started.append(self.url)

        def stop(self) -> None: ...

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Counted)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    waiting = EnginePart(spec.engine(0), 1.0)
    waiting.room.clear()
    waiting.stop()
    with pytest.raises(EngineError, match="not needed any more"):
        waiting.start_again()
    assert len(started) == 1


def test_a_teacher_has_names_logs_and_a_router_of_its_own(tmp_path: Path) -> None:
    student = FleetSpec(
        model_path=tmp_path,
        device="cpu",
        log_dir=tmp_path,
        sglang=SGLangConfig(sglang_router_port=4000, server={"dtype": "float32"}),
        num_engines=2,
        external=("host:1",),
    )
    spec = student.of_teacher(tmp_path / "teacher")
    assert spec.engine(0).name == "teacher_engine_0"
    assert (spec.num_engines, spec.external, spec.fixed_weights) == (1, (), True)
    assert (spec.sglang.sglang_router_port, spec.sglang.server) == (None, {"dtype": "float32"})
    assert spec.log_dir != student.log_dir
    assert spec.model_path != student.model_path


def test_only_engines_that_are_up_are_replaced_for_not_answering_a_publish(tmp_path: Path) -> None:
    accused: list[tuple[str, str]] = []
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    engines._parts = [part("a", "x"), part("b", "y"), part("c", "x", is_up=False)]
    engines._watch = SimpleNamespace(accuse=lambda lost, why: accused.append((lost.name, why)))
    engines.unanswered(["x"], "did not load")
    assert accused == [("a", "did not load")]


def test_engines_of_several_machines_count_gpus_there_and_share_its_cores(tmp_path: Path) -> None:
    cluster = ClusterConfig(
        device="cuda",
        colocate=True,
        actor_num_nodes=2,
        actor_num_gpus_per_node=4,
        rollout_num_gpus=8,
        rollout_num_gpus_per_engine=2,
        offload_rollout=True,
    )
    spec = FleetSpec.resolve(
        cluster, SGLangConfig(), machines(cluster), model_path=tmp_path, log_dir=tmp_path, seed=7
    )
    engines = [spec.engine(index) for index in range(spec.num_engines)]
    assert [engine.machine for engine in engines] == [0, 0, 1, 1]
    assert [engine.gpus for engine in engines] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert {engine.lender for engine in engines} == {0}
    assert [engine.name for engine in engines] == [f"engine_{index}" for index in range(4)]
    assert spec.of_teacher(tmp_path).engine(0).machine == 0


def test_an_engine_that_is_not_ready_in_time_is_named_with_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starting(Started):
        def __init__(self, spec: EngineSpec, launch: Launch) -> None:
            super().__init__(spec, launch)
            self.process.name, self.process.exit_code = f"engine {spec.name}", None
            self.client = SimpleNamespace(is_up=lambda: False)

        def wait_ready(self, deadline_s: float) -> None:
            wait_until(self.process, self.client.is_up, deadline_s)

        def stop(self) -> None: ...

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Starting)
    spec = FleetSpec(
        model_path=tmp_path,
        device="cpu",
        log_dir=tmp_path,
        sglang=SGLangConfig(),
        ready_timeout_s=0.4,
    )
    with pytest.raises(EngineError, match=r"engine engine_0 was not ready after 0\.4 s"):
        Engines(spec).start()


def test_each_machines_launcher_starts_its_engines(tmp_path: Path) -> None:
    class Refuses:
        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, method: str, *args: Any) -> Any:
            raise EngineError(f"{self.name}: {method} {args[-1].name}")

    cluster = ClusterConfig(device="cpu", actor_num_nodes=2, rollout_num_engines=2)
    spec = FleetSpec.resolve(
        cluster, SGLangConfig(), machines(cluster), model_path=tmp_path, log_dir=tmp_path, seed=7
    )
    start = Start(spec, {0: Refuses("first"), 1: Refuses("second")}, lambda *_, **__: None)
    for machine, told in ((0, "first: start engine_0"), (1, "second: start engine_1")):
        with pytest.raises(EngineError, match=told):
            start.launch_on(machine)(spec.engine(machine))


def test_memory_is_lent_only_after_a_check_that_generates_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    asked, go_on = threading.Event(), threading.Event()

    class Checked(EnginePart):
        def _says(self, path: str, timeout_s: float) -> bool:
            asked.set()
            assert go_on.wait(30)
            order.append(path)
            return True

    class Lending(Started):
        def hold(self, what: str) -> None:
            order.append(f"hold {what}")

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Lending)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    checked = Checked(spec.engine(0), 1.0)
    engines._parts = [checked]
    check = threading.Thread(target=checked.answers, args=(30.0,))
    lend = threading.Thread(target=engines.hold, args=("nothing",))
    check.start()
    assert asked.wait(30)
    lend.start()
    lend.join(0.2)
    assert lend.is_alive(), "lent while a check was on its way"
    go_on.set()
    for thread in (check, lend):
        thread.join(30)
    assert order == ["/health_generate", "hold nothing"]


class Slow(Started):
    """Comes up when it may, and ends sooner when it is killed."""

    may = threading.Event()
    made: "list[Slow]" = []  # noqa: RUF012 -- of one test

    def __init__(self, spec: EngineSpec, launch: Launch) -> None:
        super().__init__(spec, launch)
        self.began, self.held = threading.Event(), list[str]()
        Slow.made.append(self)

    def wait_ready(self, deadline_s: float) -> None:
        self.began.set()
        while not Slow.may.wait(0.01):
            if self.killed:
                raise EngineError("ended with exit code 137")

    def hold(self, what: str) -> None:
        assert not self.killed
        self.held.append(what)


def test_an_engine_that_is_being_started_makes_room_and_starts_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Slow)
    monkeypatch.setattr(Slow, "may", threading.Event())
    monkeypatch.setattr(Slow, "made", [])
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    lost = EnginePart(spec.engine(0), 1.0)
    engines._parts, engines._watch = [lost], object()
    again = threading.Thread(target=lost.start_again, daemon=True)
    again.start()
    wait_until_made(2)
    assert Slow.made[1].began.wait(30)
    engines.hold("nothing")
    assert Slow.made[1].killed, "it would load weights into memory that others need"
    again.join(0.2)
    assert len(Slow.made) == 2
    assert again.is_alive()
    engines.hold("weights")
    Slow.may.set()
    again.join(30)
    assert (len(Slow.made), lost.is_up, Slow.made[2].killed) == (3, True, False)
    engines.hold("nothing")
    assert Slow.made[2].held == ["nothing"]


def wait_until_made(count: int) -> None:
    deadline = time.monotonic() + 30
    while len(Slow.made) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_keeps_its_memory_is_ended_where_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keeps(Started):
        def hold(self, what: str) -> None:
            raise EngineError("a request still runs")

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Keeps)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    greedy = EnginePart(spec.engine(0), 1.0)
    engines._parts = [greedy]
    with pytest.raises(EngineError, match="a request still runs"):
        engines.hold("nothing")
    assert not greedy.engine.killed  # pyright: ignore[reportAttributeAccessIssue]
    engines._watch = object()
    engines.hold("nothing")
    assert greedy.engine.killed  # pyright: ignore[reportAttributeAccessIssue]


def test_an_engine_that_took_the_place_of_one_that_kept_its_memory_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(Started):
        def hold(self, what: str) -> None:
            part.engine = another  # this one was lost, and is started again
            raise EngineError("connection reset by peer")

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Ends)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    part: Any = EnginePart(spec.engine(0), 1.0)
    kept, another = part.engine, Ends(part.spec, part._launch)
    engines._parts, engines._watch = [part], object()
    engines.hold("everything")
    assert (kept.killed, another.killed) == (True, False)


def test_each_step_of_the_start_is_recorded_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = {"engine_0": 2, "engine_1": 1, "engine_2": 2}
    recorded: list[str] = []

    class Rising(Started):
        """Answers from a certain look on."""

        def __init__(self, spec: EngineSpec, launch: Launch) -> None:
            super().__init__(spec, launch)
            self.name, self.client = spec.name, self

        def is_up(self) -> bool:
            looks[self.name] -= 1
            return looks[self.name] <= 0

    def record(event: str, *, what: str, seconds: float) -> None:
        assert event == "started"
        assert 0 <= seconds < 30
        recorded.append(f"{what}, {max(looks.values())} to go")

    monkeypatch.setattr("slime_sglang.fleet.parts.Engine", Rising)
    monkeypatch.setattr("slime_sglang.fleet.starting.check", lambda process, doing: None)
    monkeypatch.setattr("slime_sglang.fleet.starting.start_router", lambda *_, **__: object())
    spec = FleetSpec(
        model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig(), num_engines=3
    )
    Engines(spec, record=record).start()
    assert recorded == [
        "engine 1 of 3 up, 1 to go",
        "engine 2 of 3 up, 0 to go",
        "engine 3 of 3 up, 0 to go",
        "router up, 0 to go",
    ]
