"""What engines on GPUs hold and say after a publish, by every transport: what was trained.

Besides the digests that every publish compares: an engine's weights are overwritten before it, and
after it have the checksums that they have once SGLang has read the trainer's weights as a
checkpoint. What the engine says of its tokens is held against transformers.
"""

import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from slime_testing.ranks import run_alone
from slime_testing.tiny import make_qwen3

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(GPUS == 0, reason="needs a CUDA device"),
]

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
TRANSPORTS = ("tensor", "disk", "delta by xor", "delta by overwrite", "nccl")
ON_GPU = {
    "attention_backend": "triton",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.3,
    "max_total_tokens": 8192,
}


def receivers(root: Path, engines: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """How to make those that this machine has engines for."""
    from slime_sglang.weights.collective import CollectiveReceiver
    from slime_sglang.weights.disk import DiskReceiver, DiskSpec
    from slime_sglang.weights.session import EngineTarget
    from slime_sglang.weights.tensor import TensorReceiver
    from slime_sglang.weights.version_files import LocalCopySpec

    def delta(encoding: Any) -> Callable[[], Any]:
        copy = LocalCopySpec(directory=root / f"copy {encoding}", delta=True, encoding=encoding)
        spec = DiskSpec(directory=root / f"versions {encoding}", local=copy)
        return lambda: DiskReceiver(targets["near"], spec)

    targets = {name: [EngineTarget(engine.url)] for name, engine in engines.items()}
    made: dict[str, Callable[[], Any]] = {
        "tensor": lambda: TensorReceiver(targets["near"]),
        "disk": lambda: DiskReceiver(targets["near"], DiskSpec(directory=root / "versions")),
        "delta by xor": delta("xor"),
        "delta by overwrite": delta("overwrite"),
    }
    if "far" in engines:
        backend: Any = "nccl" if GPUS else "gloo"
        made["nccl"] = lambda: CollectiveReceiver(targets["far"], backend=backend, timeout_s=60)
    return made


def publish_by_all(root: str) -> dict[str, Any]:
    """By transport: of two versions what the engine holds and says; or what went wrong."""
    os.environ["NCCL_CUMEM_ENABLE"] = "0"  # as in the trainer of a run
    from slime_megatron.trainer import TrainerRank
    from slime_sglang.server.launch import Engine, EngineSpec
    from slime_testing.trainer_case import make_config

    model, device = Path(root) / "model", "cuda" if GPUS else "cpu"
    specs = {
        name: EngineSpec(
            name=name,
            model_path=model,
            device=device,
            gpus=(gpu,) if GPUS else (),
            log_dir=Path(root) / "logs",
            server=ON_GPU if GPUS else {"max_total_tokens": 8192},
        )
        for gpu, name in enumerate(("near", "far")[: GPUS or 1])
    }
    engines = {name: Engine(spec) for name, spec in specs.items()}
    try:
        for engine in engines.values():
            engine.wait_ready(300)
        reached = engines if GPUS else {**engines, "far": engines["near"]}
        receiver: list[Any] = []
        flags = ("--bf16", "--use-distributed-optimizer") if GPUS else ()
        config = make_config(model, "--lr=3e-3", *flags, device=device)
        trainer = TrainerRank(config, 0, 1, lambda: receiver[-1])
        trainer.initialize(f"file://{root}/rendezvous")
        found: dict[str, Any] = {}
        for number, (name, make) in enumerate(receivers(Path(root), reached).items()):
            engine = reached["far" if name == "nccl" else "near"]
            try:
                receiver.append(make())
                trainer._receiver = None
                found[name] = published(trainer, engine, model, 10 * number)
            except Exception:
                found[name] = traceback.format_exc()
            finally:
                receiver[-1].close()
        trainer.shutdown()
        return found
    finally:
        for engine in engines.values():
            engine.stop()


def published(trainer: Any, engine: Any, model: Path, first: int) -> list[dict[str, Any]]:
    """Of a trained version and one with a layer changed besides, after the engine forgot all."""
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload

    payload = make_payload(make_batch(), ParallelLayout(), trainer._config.batch, 0)
    trainer.train(first, payload)
    before = exported(trainer, model, "before")
    found: list[dict[str, Any]] = []
    for version in (first + 1, first + 2):
        if version == first + 1:
            trainer.train(version, payload)
        else:
            change_a_layer(trainer)
        directory = exported(trainer, model, f"version {version}")
        asked(engine, "reset_tensors")
        metrics = trainer.publish(version)
        held = checksums(engine)
        rows = generated(engine, version)
        asked(engine, "reset_tensors")
        forgotten = checksums(engine)
        engine.client.update_from_disk(str(directory))
        said = torch.cat([row for _, row in rows])
        exact, rounded, stale = (
            log_probs(of, [tokens for tokens, _ in rows], kind)
            for of, kind in (
                (directory, torch.float32),
                (directory, torch.bfloat16),
                (before, torch.float32),
            )
        )
        found.append(
            {
                "engine": float((said - exact).abs().mean()),
                "rounding": float((rounded - exact).abs().mean()),
                "stale": float((stale - exact).abs().mean()),
                "held": held,
                "read": checksums(engine),
                "forgotten": forgotten,
                "density": metrics.get("perf/update_weights_density", 1.0),
            }
        )
        before = directory
    return found


@torch.no_grad()
def change_a_layer(trainer: Any) -> None:
    for name, parameter in trainer._state.chunks[0].named_parameters():
        if ".layers.1." in name:
            parameter.neg_()


def exported(trainer: Any, model: Path, name: str) -> Path:
    """The trainer's weights as a checkpoint that anybody reads."""
    from safetensors.torch import save_file
    from slime_testing.megatron_steps import whole_model

    directory = model.with_name(name)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = {name: x.cpu().contiguous() for name, x in whole_model(trainer._state).items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def asked(engine: Any, action: str) -> dict[str, Any]:
    """SGLang's own checker of weights."""
    reply = httpx.post(f"{engine.url}/weights_checker", json={"action": action}, timeout=60)
    assert reply.json()["success"], reply.text
    return reply.json()


def checksums(engine: Any) -> dict[str, str]:
    """Of what the engine computes with, by its own names; it has a kernel for that on GPUs only."""
    return asked(engine, "checksum")["ranks"][0]["checksums"] if GPUS else {}


def generated(engine: Any, version: int) -> list[tuple[list[int], torch.Tensor]]:
    """Prompts with responses, and what the engine says of every token but the first."""
    rows: list[tuple[list[int], torch.Tensor]] = []
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        prompt: list[int] = torch.randint(1, 99, (40,), generator=generator).tolist()
        body = {
            "input_ids": prompt,
            "sampling_params": {"max_new_tokens": 16, "temperature": 1.0, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        told = engine.client.generate(body)["meta_info"]
        assert told["weight_version"] == str(version), told
        response = told["output_token_logprobs"]
        said = torch.tensor([row[0] for row in (*told["input_token_logprobs"][1:], *response)])
        rows.append(([*prompt, *(row[1] for row in response)], said))
    return rows


def log_probs(directory: Path, rows: list[list[int]], dtype: torch.dtype) -> torch.Tensor:
    """Of every token but the first, by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    model = model.to("cuda" if GPUS else "cpu")
    found: list[torch.Tensor] = []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        with torch.no_grad():
            table = model(tokens).logits[0, :-1].float().log_softmax(-1)
        found.append(table.gather(1, tokens[0, 1:, None])[:, 0].cpu())
    return torch.cat(found)


@pytest.fixture(scope="module")
def published_by(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("transports")
    make_qwen3(root / "model", **SIZES)
    return run_alone(publish_by_all, str(root), seconds=500)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_engine_holds_and_serves_what_was_trained(
    transport: str, published_by: dict[str, Any]
) -> None:
    if transport == "nccl" and GPUS < 2:
        pytest.skip(f"needs 2 GPUs, here are {GPUS}")
    found = published_by[transport]
    assert isinstance(found, list), found
    for row in found:
        assert row["held"] == row["read"], transport
        assert row["held"] != row["forgotten"], transport
        assert len(row["held"]) > 10
    for row in found:
        print(transport, {name: x for name, x in row.items() if isinstance(x, float)})
        assert row["engine"] < 3 * row["rounding"] + 1e-3
        assert row["stale"] > 2 * row["engine"]
    if transport.startswith("delta"):
        whole, changed = (row["density"] for row in found)
        assert whole == 1
        assert 0 < changed < 0.7
