from pathlib import Path
from types import SimpleNamespace
from typing import Any

from slime_sglang.config import SGLangConfig
from slime_sglang.engines import Engines, FleetSpec
from slime_sglang.parts import EnginePart


def part(name: str, url: str, *, is_up: bool = True) -> EnginePart:
    made = EnginePart.__new__(EnginePart)  # without a process
    made.name, made.is_up = name, is_up
    made.engine = SimpleNamespace(url=url)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_only_engines_that_are_up_are_replaced_for_not_answering_a_publish(tmp_path: Path) -> None:
    accused: list[tuple[str, str]] = []
    spec = FleetSpec(model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    engines: Any = Engines(spec)
    engines._parts = [part("a", "x"), part("b", "y"), part("c", "x", is_up=False)]
    engines._watch = SimpleNamespace(accuse=lambda lost, why: accused.append((lost.name, why)))
    engines.unanswered(["x"], "did not load")
    assert accused == [("a", "did not load")]
