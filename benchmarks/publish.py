"""Seconds of a publish, by transport: from tensors in this process to an engine that serves them.

One real engine on this machine. The tensors are those of a random Qwen3, handed over in buckets as
the trainer does, each with its digest, which the engine verifies.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from record import record
from safetensors.torch import load_file
from slime_core.interfaces import WeightReceiver
from slime_sglang.server.launch import EngineSpec, start_engine
from slime_sglang.weights.collective import CollectiveReceiver
from slime_sglang.weights.disk import DiskReceiver
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver
from slime_train.quickstart.model import qwen3_config, write_qwen3
from torch import Tensor

BUCKET_BYTES = 512 * 2**20
TIMEOUT_S = 600.0

Bucket = list[tuple[str, Tensor]]


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        config = qwen3_config(num_hidden_layers=options.layers, hidden_size=options.hidden)
        model = write_qwen3(directory / "model", config, seed=0, init_std=0.02)
        buckets = in_buckets(load_file(model / "model.safetensors"))
        spec = EngineSpec(name="engine", model_path=model, device="cpu", log_dir=directory / "logs")
        engine = start_engine(spec)
        try:
            seconds = {
                name: publish_repeatedly(make([EngineTarget(engine.url)]), buckets, options.repeats)
                for name, make in transports(directory).items()
            }
        finally:
            engine.stop()
    num_bytes = sum(tensor.nbytes for bucket in buckets for _, tensor in bucket)
    settings = {**vars(options), "weights_bytes": num_bytes, "device": "cpu", "dtype": "float32"}
    record(
        "publish",
        settings,
        [
            {
                "transport": name,
                "first_s": times[0],
                "later_s": statistics.median(times[1:]),
                "mib_per_s": num_bytes / 2**20 / statistics.median(times[1:]),
            }
            for name, times in seconds.items()
        ],
    )


def transports(
    directory: Path,
) -> dict[str, Callable[[Sequence[EngineTarget]], WeightReceiver]]:
    """How to make the receiver of each ``--update-weight-transport``."""
    return {
        "tensor (shared memory)": TensorReceiver,
        "nccl (gloo broadcast)": lambda targets: CollectiveReceiver(
            targets, backend="gloo", timeout_s=TIMEOUT_S
        ),
        "disk": lambda targets: DiskReceiver(targets, directory / "weights", keep_files=False),
    }


def in_buckets(tensors: dict[str, Tensor]) -> list[Bucket]:
    """The tensors in order, in lists of at most ``BUCKET_BYTES``."""
    buckets: list[Bucket] = [[]]
    room = BUCKET_BYTES
    for name, tensor in tensors.items():
        if tensor.nbytes > room and buckets[-1]:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append((name, tensor))
        room -= tensor.nbytes
    return buckets


def publish_repeatedly(
    receiver: WeightReceiver, buckets: Sequence[Bucket], repeats: int
) -> list[float]:
    """Seconds of each publish; the first also sets the transport up."""
    seconds: list[float] = []
    for version in range(1 + repeats):
        begin = time.perf_counter()
        receiver.begin(version)
        for bucket in buckets:
            receiver.send(bucket)
        receiver.commit()
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
