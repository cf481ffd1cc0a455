import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slime_core.errors import EngineError
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet import external
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.spec import FleetSpec
from slime_testing.engine_http import FakeEngine, serving
from slime_testing.runs import wait_for

USABLE = {"tp_size": 2, "dp_size": 1, "pp_size": 1, "internal_states": [{"slime_plugin": "0"}]}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with serving() as server:
        server.replies["/server_info"] = [(200, USABLE)]
        yield server


def make_model(tmp_path: Path, name: str = "Qwen3ForCausalLM") -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    return tmp_path


def test_sizes_are_what_the_engine_says(engine: FakeEngine, tmp_path: Path) -> None:
    address = engine.url.removeprefix("http://")
    (part,) = external.discover([address], make_model(tmp_path))
    assert (part.target.url, part.target.num_ranks) == (engine.url, 2)
    part.stop()
    assert {path for path, _ in engine.calls} == {"/server_info", "/model_info"}


def test_ranks_that_divide_the_attention_are_published_to(
    engine: FakeEngine, tmp_path: Path
) -> None:
    states = [{"slime_plugin": "0"}] * 2
    divided = {"dp_size": 2, "enable_dp_attention": True, "internal_states": states}
    engine.replies["/server_info"] = [(200, {**USABLE, **divided, "max_ep_size": None})]
    (part,) = external.discover([engine.url], make_model(tmp_path))
    assert part.target.num_ranks == 2
    part.stop()
    apart = {**divided, "enable_dp_attention_local_control_broadcast": True}
    engine.replies["/server_info"] = [(200, {**USABLE, **apart})]
    with pytest.raises(EngineError, match=r"local_control_broadcast True, .* to False only"):
        external.discover([engine.url], make_model(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"internal_states": [{}]}, "without slime's plugin"),
        ({"internal_states": []}, "without slime's plugin"),
        ({"pp_size": 2}, "pp_size 2"),
        ({"dp_size": 4}, "dp_size 4"),
        ({"max_ep_size": 8}, "max_ep_size 8"),
        ({"tokenizer_worker_num": 2}, "tokenizer_worker_num 2"),
        ({"skip_tokenizer_init": True}, "skip_tokenizer_init True"),
        ({"disaggregation_mode": "prefill"}, "disaggregation_mode prefill"),
    ],
)
def test_an_engine_that_cannot_be_published_to_is_named(
    engine: FakeEngine, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    engine.replies["/server_info"] = [(200, {**USABLE, **change})]
    with pytest.raises(EngineError, match=rf"-addrs {engine.url}: .*{complaint}"):
        external.discover([engine.url], make_model(tmp_path))


def test_an_engine_of_another_model_is_named(engine: FakeEngine, tmp_path: Path) -> None:
    engine.replies["/model_info"] = [(200, {"architectures": ["LlamaForCausalLM"]})]
    with pytest.raises(EngineError, match=r"serves LlamaForCausalLM, .* is Qwen3ForCausalLM"):
        external.discover([engine.url], make_model(tmp_path))


def test_every_address_without_an_engine_is_named(engine: FakeEngine, tmp_path: Path) -> None:
    spec = FleetSpec(
        model_path=make_model(tmp_path),
        device="cpu",
        log_dir=tmp_path,
        sglang=SGLangConfig(),
        external=("127.0.0.1:9", engine.url, "127.0.0.1:10"),
    )
    engines = Engines(spec)
    with pytest.raises(EngineError, match=r":9: no engine answers(.|\n)*:10: no engine answers"):
        engines.start()
    assert engines.urls == []


@pytest.fixture
def found(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[external.ExternalEngine]:
    """``engine`` as the run knows it, asked almost all the time."""
    monkeypatch.setattr(external, "_CHECK_EVERY_S", 0.01)
    (part,) = external.discover([engine.url], make_model(tmp_path))
    yield part.engine
    part.stop()


def lost(engine: external.ExternalEngine) -> EngineError | None:
    try:
        engine.check_alive()
    except EngineError as error:
        return error
    return None


def test_silence_is_noticed_after_some_time(
    engine: FakeEngine, found: external.ExternalEngine
) -> None:
    assert wait_for(lambda: sum(path == "/health" for path, _ in engine.calls) > 3, 60)
    assert lost(found) is None
    engine.replies["/health"] = [(503, {})]
    assert wait_for(lambda: lost(found) is not None, 60)
    said = rf"-addrs {engine.url}: the engine left \d+ health checks in a row unanswered"
    assert re.search(said, str(lost(found)))
    engine.replies["/health"] = [(200, {})]
    assert wait_for(lambda: lost(found) is None, 60)


def test_silence_ends_a_run_too_that_starts_its_own_lost_processes_again(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "_CHECK_EVERY_S", 0.01)
    spec = FleetSpec(
        model_path=tmp_path, device="cpu", log_dir=tmp_path, sglang=SGLangConfig(), external=("x",)
    )
    engines: Any = Engines(spec)
    engines._parts = external.discover([engine.url], make_model(tmp_path))
    engines._watch = SimpleNamespace(problem=None, end=lambda: None, join=lambda: None)
    engines.check_alive()
    engine.replies["/health"] = [(503, {})]
    (part,) = engines._parts
    assert wait_for(lambda: lost(part.engine) is not None, 60)
    with pytest.raises(EngineError, match="health checks in a row unanswered"):
        engines.check_alive()
    engines.stop()


def test_an_engine_that_hangs_holds_up_nobody_who_asks_for_it(
    engine: FakeEngine, found: external.ExternalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.client._PROBE_S", 3.0)
    monkeypatch.setattr(external, "_CHECKS", 1)
    engine.silent_about = "/health"
    longest, error, began = 0.0, None, time.monotonic()
    while error is None and time.monotonic() - began < 60:
        asked = time.monotonic()
        error = lost(found)
        longest = max(longest, time.monotonic() - asked)
        time.sleep(0.02)
    assert longest < 2.0, "waited for an answer"
    assert engine.url in str(error)


def test_nobody_asks_an_engine_that_is_not_needed_any_more(
    engine: FakeEngine, found: external.ExternalEngine
) -> None:
    assert wait_for(lambda: ("/health", {}) in engine.calls, 60)
    found.stop()
    asked = len(engine.calls)
    time.sleep(0.1)
    assert len(engine.calls) == asked
