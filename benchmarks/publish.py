"""Seconds of a publish: from the trainer's weights to engines that serve them, verified.

A real trainer rank with random weights at a published shape hands its weights to a real engine by
each transport: gathering, conversion to Hugging Face names, digests on both sides, loading, and the
engine's pause and version included. On one GPU by CUDA IPC; with a second one also by NCCL to an
engine there; on a CPU by shared memory, gloo and files. ``delta`` writes a second version in which
one element of a hundred has changed. Where buckets travel, every second publish goes without
digests, which the product never does: the difference is what verifying costs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("NCCL_CUMEM_ENABLE", "0")  # as in the trainer of a run

import torch
from measuring import MODELS, machine_name, on_gpu, row, server_arguments, turn, wait, write_shape
from record import record
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.model import ModelConfig
from slime_core.interfaces import WeightReceiver
from slime_megatron.trainer import TrainerRank
from slime_sglang.server.launch import Engine, EngineSpec, start_engine
from slime_sglang.weights import collective, tensor
from slime_sglang.weights.bucket import Bucket, pack
from slime_sglang.weights.collective import CollectiveReceiver
from slime_sglang.weights.digests import NamedTensors, digests_of, flat_bytes
from slime_sglang.weights.disk import DiskReceiver, DiskSpec
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver
from slime_sglang.weights.version_files import LocalCopySpec
from slime_testing.trainer_case import make_config

TARGETS = {
    ("tensor", "Qwen3-0.6B"): 0.06,
    ("tensor", "Qwen3-1.7B"): 0.12,
    ("tensor", "Qwen3-4B"): 0.25,
    ("nccl", "Qwen3-0.6B"): 0.06,
    ("nccl", "Qwen3-4B"): 0.15,
}
MOST_OVERHEAD = 5.0
BUCKET_BYTES = 512 * 2**20
CHANGED = 100
IN_BUCKETS = ("tensor", "nccl", "gloo")

Targets = Sequence[EngineTarget]


class Untrained(TrainerRank):
    """A trainer that keeps the random weights its model is built with."""

    def _load_weights(self, load: Path | None) -> None:
        """There is no checkpoint of these shapes."""


def main() -> None:
    """Start every model's processes at once; measure one after the other; record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=None)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--update-weight-buffer-size", type=int, default=BUCKET_BYTES)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = options.models or (["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B"] if on_gpu() else ["tiny"])
    if options.result is not None:
        options.result.write_text(json.dumps(measure(models[0], options)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        lock = os.environ.get("BENCHMARK_LOCK", f"{scratch}/lock")
        results = [Path(scratch, f"{model}.json") for model in models]
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--models", model, "--repeats", str(options.repeats),
                 "--update-weight-buffer-size", str(options.update_weight_buffer_size),
                 "--result", str(result)],
                env={**os.environ, "BENCHMARK_LOCK": lock},
            )
            for model, result in zip(models, results, strict=True)
        ]  # fmt: skip
        for model, worker, result in zip(models, workers, results, strict=True):
            if worker.wait(timeout=600) or not result.exists():
                print(f"{model}: failed", flush=True)
                continue
            rows += json.loads(result.read_text())
    if not rows:
        raise SystemExit("no model was measured")
    size = options.update_weight_buffer_size
    other = "" if size == BUCKET_BYTES else f"-{size >> 20}MiB"
    record(f"publish-{machine_name()}{other}", vars(options), rows)


def measure(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model by every transport that this machine has."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        directory = Path(scratch)
        shape = write_shape(directory / "model", model)
        specs = engine_specs(shape, directory / "logs")
        starting = {name: pool.submit(start_engine, spec) for name, spec in specs.items()}
        engines = {name: future.result(600) for name, future in starting.items()}
        try:
            with turn():
                return measured(model, shape, directory, engines, options)
        finally:
            for engine in set(engines.values()):
                engine.stop()


def engine_specs(shape: Path, logs: Path) -> dict[str, EngineSpec]:
    """An engine for each GPU, or the only one of a CPU."""
    if not on_gpu():
        server = server_arguments(max_total_tokens=4096)
        return {
            "cpu": EngineSpec(name="e", model_path=shape, device="cpu", log_dir=logs, server=server)
        }
    # Many share the GPUs here: the pool of tokens is bounded, not the share of memory.
    server = server_arguments(max_total_tokens=8192, mem_fraction_static=0.9)
    names = ["tensor", "nccl"][: torch.cuda.device_count()]
    return {
        name: EngineSpec(
            name=name, model_path=shape, device="cuda", gpus=(gpu,), log_dir=logs, server=server
        )
        for gpu, name in enumerate(names)
    }


def measured(
    model: str,
    shape: Path,
    directory: Path,
    engines: Mapping[str, Engine],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Publish by each transport, then take the parts of the trainer's side alone."""
    device = "cuda" if on_gpu() else "cpu"
    size = options.update_weight_buffer_size
    words = ("--bf16",) if on_gpu() else ()
    config = make_config(
        shape, *words, policy_loss=PolicyLossConfig(loss_type="sft_loss"), device=device
    )
    config = replace(
        config,
        model=ModelConfig(hf_checkpoint=str(shape), compile_layers=False),
        sync=replace(config.sync, update_weight_buffer_size=size),
    )
    trainer = Untrained(config, 0, 1, lambda: receivers[0])
    trainer.initialize(f"file://{directory}/rendezvous")
    rows: list[dict[str, Any]] = []
    receivers: list[WeightReceiver] = [None]  # type: ignore[list-item]
    for name, make in transports(directory, engines).items():
        receivers[0] = receiver = make()
        trainer._receiver = None
        rows += publishes(trainer, model, name, options.repeats)
        receiver.close()
    rows += parts(trainer, model, size)
    return rows


def publishes(trainer: TrainerRank, model: str, name: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of one transport; where that is possible, of publishes without digests in between."""
    first = published(trainer, 0, name)
    verified: list[float] = []
    bare: list[float] = []
    for version in range(1, 1 + repeats):
        verified.append(published(trainer, version, name))
        if name in IN_BUCKETS:
            with without_digests():
                bare.append(published(trainer, version, name))
    seconds = statistics.median(verified)
    rows = [
        row(f"publish by {name}, verified", model, seconds, "s", TARGETS.get((name, model))),
        row(f"publish by {name}, slowest", model, max(verified), "s"),
        row(f"publish by {name}, first", model, first, "s"),
    ]
    if bare:
        overhead = 100 * (seconds / statistics.median(bare) - 1)
        most = MOST_OVERHEAD if on_gpu() else None
        rows.append(row(f"verifying, of a publish by {name} without", model, overhead, "%", most))
    return rows


@contextmanager
def without_digests() -> Generator[None]:
    """Buckets of weights alone, which engines load unread and owe no receipt for."""

    def bare(tensors: NamedTensors) -> Bucket:
        return Bucket.of(torch.cat([flat_bytes(each) for _, each in tensors]), tensors, "")

    with patch.object(tensor, "pack", bare), patch.object(collective, "pack", bare):
        yield


def published(trainer: TrainerRank, version: int, name: str) -> float:
    """Seconds of one publish; for delta something changes before it."""
    if name == "delta":
        with torch.no_grad():
            for parameter in trainer._state.chunks[0].parameters():
                parameter.view(-1)[version % CHANGED :: CHANGED] += 1e-2
    wait()
    return float(trainer.publish(version)["perf/update_weights_time"])


def transports(directory: Path, engines: Mapping[str, Engine]) -> dict[str, Callable[[], Any]]:
    """How to make the receiver of each."""

    def to(name: str) -> Targets:
        return [EngineTarget(engines[name].url)]

    if on_gpu():
        made: dict[str, Callable[[], Any]] = {"tensor": lambda: TensorReceiver(to("tensor"))}
        if "nccl" in engines:
            made["nccl"] = lambda: CollectiveReceiver(to("nccl"), backend="nccl", timeout_s=60)
        return made
    local = LocalCopySpec(directory=directory / "copy", delta=True)
    return {
        "tensor": lambda: TensorReceiver(to("cpu")),
        "gloo": lambda: CollectiveReceiver(to("cpu"), backend="gloo"),
        "disk": lambda: DiskReceiver(to("cpu"), DiskSpec(directory=directory / "whole")),
        "delta": lambda: DiskReceiver(
            to("cpu"), DiskSpec(directory=directory / "changes", local=local)
        ),
    }


def parts(trainer: TrainerRank, model: str, bucket_bytes: int) -> list[dict[str, Any]]:
    """Seconds of gathering, of digests and of packing, alone and waited for."""
    from slime_megatron.mcore.weights.export import export_buckets

    def gather() -> list[Any]:
        return list(export_buckets(trainer._state, bucket_bytes=bucket_bytes))

    buckets = gather()
    gathering = timed(gather)
    digests = timed(lambda: [digests_of(bucket) for bucket in buckets])
    packing = timed(lambda: [pack(bucket) for bucket in buckets])
    size = sum(tensor.nbytes for bucket in buckets for _, tensor in bucket)
    return [
        row("gathering and conversion alone", model, gathering, "s"),
        row("packing and digests alone", model, packing, "s"),
        row("digests alone, one side", model, digests, "s"),
        row("weights", model, size / 1e9, "GB"),
    ]  # fmt: skip


def timed(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds."""
    times: list[float] = []
    for _ in range(repeats + 1):
        wait()
        begin = time.perf_counter()
        result = work()
        wait()
        times.append(time.perf_counter() - begin)
        del result
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a process group is left to the system
