"""A trainer and an engine that take turns on one device, with random weights at any shape."""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.model import ModelConfig
from slime_core.residency import TakingTurns
from slime_core.schedule.layout import ParallelLayout
from slime_megatron.trainer import TrainerRank
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.weights.tensor import TensorReceiver

from slime_testing.qwen3_shapes import qwen3_config
from slime_testing.tiny import make_qwen3
from slime_testing.trainer_case import make_batch, make_config, make_payload

QUARTER = "a quarter of Qwen3-0.6B"
SHAPES: Mapping[str, tuple[int, int, int, int]] = {
    QUARTER: (1024, 7, 16, 3072),
    "Qwen3-0.6B": (1024, 28, 16, 3072),
    "Qwen3-1.7B": (2048, 28, 16, 6144),
    "Qwen3-4B": (2560, 36, 32, 9728),
}
"""Hidden size, layers, heads and feed-forward size of published models, and of a part of one."""
_WORDS = 32_768
"""In the quarter's vocabulary; all of them would be more than half of it."""

_ON_GPU = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "attention_backend": "triton",
    "disable_cuda_graph": True,
}


class Untrained(TrainerRank):
    """A trainer that keeps the random weights its model is built with."""

    def _load_weights(self, load: Path | None) -> None:
        """There is no checkpoint of these shapes."""


class Couple:
    """Engine and trainer in turns; ``cycle`` is what one iteration does to their memory."""

    def __init__(
        self,
        model: str,
        directory: Path,
        *,
        share: float = 0.8,
        at_once: bool = False,
        **server: Any,
    ) -> None:
        """``model``: a name in ``SHAPES``, or ``tiny``; ``share``: what the engine may take.

        ``at_once``: both start at the same time, which is for models that fit beside an engine.
        """
        self._stack = ExitStack()
        self._iteration = 0
        # Servers end with the thread that has started them.
        starter = self._stack.enter_context(ThreadPoolExecutor(1))
        write_model(model, directory)
        self._engines = Engines(_fleet(directory, share, server))
        starting = starter.submit(self._engines.start) if at_once else None
        self._trainer = self._built_trainer(model, directory)
        self._stack.callback(self._trainer.shutdown)
        self._trainer.train(0, self._payload)  # Adam has its moments from here on
        self._trainer.hold("nothing")
        (starting or starter.submit(self._engines.start)).result()
        self._stack.callback(self._engines.stop)
        self._room = TakingTurns(self._trainer, self._engines)

    def _built_trainer(self, model: str, directory: Path) -> TrainerRank:
        on_gpu = torch.cuda.is_available()
        flags = ("--bf16", "--use-distributed-optimizer") if on_gpu else ()
        config = make_config(
            directory,
            *flags,
            policy_loss=PolicyLossConfig(loss_type="sft_loss"),
            device="cuda" if on_gpu else "cpu",
        )
        where = ModelConfig(hf_checkpoint=str(directory), compile_layers=False)
        self._payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
        kind = TrainerRank if model == "tiny" else Untrained
        trainer = kind(replace(config, model=where), 0, 1, self._receiver)
        trainer.initialize(f"file://{directory}/rendezvous-{time.monotonic_ns()}")
        return trainer

    def __enter__(self) -> "Couple":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _receiver(self) -> TensorReceiver:
        return TensorReceiver(self._engines.targets)

    def cycle(self) -> dict[str, float]:
        """Train, publish, generate; seconds of everything and what is free then, in bytes."""
        self._iteration += 1
        with self._room.training(publishes=True):
            found = {"free_training": free_bytes()}
            found |= self._trainer.train(self._iteration, self._payload)
        with self._room.publishing():
            found |= self._trainer.publish(self._iteration)
        client = self._engines._parts[0].engine.client
        asked = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4}}
        reply = client.generate(asked)
        assert reply["meta_info"]["weight_version"] == str(self._iteration)
        found["free_generating"] = free_bytes()
        found["resident"] = float(resident_bytes())
        return {**found, **self._room.spent()}


def _fleet(directory: Path, share: float, server: Mapping[str, Any]) -> FleetSpec:
    on_gpu = torch.cuda.is_available()
    on_device = {**_ON_GPU, "mem_fraction_static": share} if on_gpu else {}
    return FleetSpec(
        model_path=directory,
        device="cuda" if on_gpu else "cpu",
        log_dir=directory / "logs",
        sglang=SGLangConfig(server={**on_device, **server}),
        gpus=(0,) if on_gpu else (),
        memory_saver=True,
    )


def write_model(name: str, directory: Path) -> None:
    """``config.json``; of a tiny model weights and tokenizer, too."""
    if name == "tiny":
        make_qwen3(directory, hidden=256, layers=4)
        return
    config = qwen3_config(*SHAPES[name], **({"vocab": _WORDS} if name == QUARTER else {}))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))


def free_bytes() -> float:
    """Of the GPU, whoever uses the rest; 0 without one."""
    return float(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0.0


def resident_bytes() -> int:
    """Host memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
