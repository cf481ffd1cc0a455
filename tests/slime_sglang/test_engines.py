from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slime_sglang.config import SGLangConfig
from slime_sglang.engines import Engines, FleetSpec
from slime_sglang.parts import EnginePart
from slime_sglang.server.launch import EngineSpec


def part(name: str, url: str, *, is_up: bool = True) -> EnginePart:
    made = EnginePart.__new__(EnginePart)  # without a process
    made.name, made.is_up = name, is_up
    made.engine = SimpleNamespace(url=url)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class Started:
    """An engine that came up."""

    def __init__(self, spec: EngineSpec) -> None:
        self.url, self.killed = f"http://{spec.name}", False
        self.process = SimpleNamespace(log_path=spec.log_dir / "engine.log")

    def kill(self) -> None:
        self.killed = True

    def wait_ready(self, deadline_s: float) -> None: ...


@pytest.mark.parametrize("at_once", [True, False])
def test_an_engine_whose_weights_are_its_own_gets_requests_as_soon_as_it_is_back(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.parts.Engine", Started)
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    made = EnginePart(spec.engine(0), 1.0, serves_at_once=at_once)
    told: list[tuple[str, str]] = []
    made.leave = lambda url: told.append(("leave", url))
    made.join = lambda url: told.append(("join", url))
    made.start_again()
    assert told == [("leave", made.url), ("join", made.url)][: 1 + at_once]
    assert (made.is_up, made.quiet) == (True, False)


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
