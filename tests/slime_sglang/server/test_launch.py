import importlib.metadata
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from slime_core.errors import EngineError
from slime_sglang.processes.ports import PortLease
from slime_sglang.server import launch as launching
from slime_sglang.server.archs import disabled_models
from slime_sglang.server.launch import EngineSpec, command_line, environment, plugin_paths


def make_spec(tmp_path: Path, **changes: Any) -> EngineSpec:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    fields = {"name": "e", "model_path": tmp_path, "device": "cpu", "log_dir": tmp_path}
    return EngineSpec(**{**fields, **changes})


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_users_values_win_over_defaults_and_lose_to_what_a_run_must_set(tmp_path: Path) -> None:
    given = {"max_total_tokens": 99, "dtype": "bfloat16", "port": 1}
    words = command_line(make_spec(tmp_path, server=given), port=5, collective_port=6)
    assert words[:3] == [sys.executable, "-m", "slime_sglang.server.cpu_main"]
    assert value_of(words, "--max-total-tokens") == "99"
    assert value_of(words, "--dtype") == "bfloat16"
    assert value_of(words, "--port") == "5"
    assert value_of(words, "--nccl-port") == "6"
    assert value_of(words, "--attention-backend") == "torch_native"


def test_an_engine_on_gpus_is_the_stock_server_with_stock_defaults(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, device="cuda", gpus=(2, 3), memory_saver=True)
    words = command_line(spec, port=5, collective_port=6)
    assert words[2] == "sglang.launch_server"
    assert value_of(words, "--tp-size") == "2"
    assert "--enable-memory-saver" in words
    assert "--attention-backend" not in words


def test_an_idle_engine_leaves_the_cores_of_a_cpu_to_others(tmp_path: Path) -> None:
    words = command_line(make_spec(tmp_path), port=5, collective_port=6)
    assert "--sleep-on-idle" in words


def test_gpus_are_counted_within_what_the_caller_may_see(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, device="cuda", gpus=(1, 2))
    assert environment(spec, {})["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert environment(spec, {"CUDA_VISIBLE_DEVICES": "4,5,6"})["CUDA_VISIBLE_DEVICES"] == "5,6"


def test_a_gpu_that_weights_are_read_from_comes_behind_those_computed_on(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, device="cuda", gpus=(1, 2), lender=0)
    assert environment(spec, {})["CUDA_VISIBLE_DEVICES"] == "1,2,0"
    own = make_spec(tmp_path, device="cuda", gpus=(0,), lender=0)
    assert environment(own, {})["CUDA_VISIBLE_DEVICES"] == "0"


def test_an_engine_does_not_inherit_the_callers_process_group(tmp_path: Path) -> None:
    base = {"RANK": "3", "MASTER_PORT": "1", "HOME": "/h", "PYTHONPATH": "/mine"}
    env = environment(make_spec(tmp_path), base)
    assert "RANK" not in env
    assert "MASTER_PORT" not in env
    assert env["HOME"] == "/h"
    stub, mine = env["PYTHONPATH"].split(":")
    assert (Path(stub) / "common_ops.py").is_file()
    assert mine == "/mine"
    assert env["SGLANG_PLUGINS"] == "slime"


def test_only_the_files_of_the_models_architecture_stay_enabled() -> None:
    skipped = disabled_models(["Qwen3ForCausalLM"])
    assert len(skipped) > 100
    assert {"qwen3", "qwen2", "utils", "transformers"}.isdisjoint(skipped)
    assert "deepseek_v2" in skipped


def test_an_unknown_architecture_disables_nothing() -> None:
    assert disabled_models(["NobodyForCausalLM"]) == []
    assert disabled_models([]) == []


def test_a_model_directory_without_config_is_named(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(EngineError, match=r"cannot read .*config\.json"):
        environment(spec, {})


@pytest.mark.parametrize("fault", ["no config", "no log"])
def test_an_engine_that_cannot_be_started_gives_its_ports_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    leases: list[PortLease] = []

    class Kept(PortLease):
        def __init__(self, count: int, host: str) -> None:
            super().__init__(count, host)
            leases.append(self)

    monkeypatch.setattr(launching, "PortLease", Kept)
    spec = make_spec(tmp_path)
    if fault == "no config":
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "e.log").mkdir()
    with pytest.raises((EngineError, OSError)):
        launching.launch(spec)
    (lease,) = leases
    for port in lease.ports:
        with socket.socket() as anyone:
            anyone.bind(("127.0.0.1", port))  # refused while it is leased


def test_sglang_finds_the_plugin_installed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin_paths() == []
    (installed,) = importlib.metadata.entry_points(group="sglang.srt.plugins", name="slime")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    metadata, sources = plugin_paths()
    (found,) = importlib.metadata.distributions(path=[metadata])
    assert [e.value for e in found.entry_points] == [installed.value]
    assert (Path(sources) / "slime_sglang" / "server" / "plugin.py").is_file()
