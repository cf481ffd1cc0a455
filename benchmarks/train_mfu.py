"""Model flops utilisation of whole training steps on one GPU, with random weights at real shapes.

A step is everything the trainer does with a batch: packing, forward, backward, gradient norm,
clipping, Adam, publishing apart. Utilisation counts (6 N + 6 * layers * heads * head_dim * length)
flops a token, N parameters, over the H200's 989 TFLOP/s of dense bf16.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from record import record
from slime_core.batch import Ragged, TrainBatch
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.batch import BatchConfig
from slime_core.config.model import ModelConfig
from slime_core.schedule.plan import ParallelLayout, plan
from slime_megatron.trainer import RankPayload, TrainerConfig, TrainerRank
from slime_testing.trainer_case import make_config

PEAK_FLOPS = 989e12
VOCAB = 151_936


@dataclass(frozen=True)
class Shape:
    """A published Qwen3."""

    hidden: int
    layers: int
    heads: int
    ffn: int

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": self.ffn,
            "vocab_size": VOCAB,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 40_960,
            "hidden_act": "silu",
            "attention_bias": False,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "Qwen3-0.6B": Shape(1024, 28, 16, 3072),
    "Qwen3-1.7B": Shape(2048, 28, 16, 6144),
    "Qwen3-4B": Shape(2560, 36, 32, 9728),
}
TARGETS = {"Qwen3-0.6B": 45.0, "Qwen3-1.7B": 53.0, "Qwen3-4B": 57.0}


class Untrained(TrainerRank):
    """A trainer that keeps the random weights its model is built with."""

    def _load_weights(self, load: Path | None) -> None:
        """There is no checkpoint of these shapes."""


def main() -> None:
    """Measure one model and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="Qwen3-0.6B")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=4, help="in a step")
    parser.add_argument("--max-tokens", type=int, default=16_384, help="in a microbatch")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--eager", action="store_true", help="do not compile layers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        shape = SHAPES[options.model]
        (directory / "config.json").write_text(json.dumps(shape.config()))
        trainer = Untrained(configured(directory, options), 0, 1)
        trainer.initialize(f"file://{directory}/rendezvous")
        payload = made(options)
        seconds = measured(trainer, payload, options.steps)
    tokens = options.length * options.sequences
    weights = parameters(shape)
    flops = tokens * (6 * weights + 6 * shape.layers * shape.heads * 128 * options.length)
    mfu = 100 * flops / seconds / PEAK_FLOPS
    target = TARGETS[options.model] if options.length == 4096 else 45.0
    memory = torch.cuda.max_memory_allocated() / 2**30
    what = f"{options.sequences} x {options.length} tokens"
    rows = [
        ("utilisation", mfu, "%", target, mfu >= target),
        ("speed", tokens / seconds, "tokens/s", None, None),
        ("step", seconds, "s", None, None),
        ("peak memory", memory, "GiB", None, None),
    ]
    name = f"train_mfu-{options.model}-{options.length}"
    record(
        name,
        vars(options) | {"parameters": weights}, [
        {
            "what": f"{label}, {what}", "model": options.model, "value": value, "unit": unit,
            "target": target, "met": met,
        }
        for label, value, unit, target, met in rows
    ])  # fmt: skip


def configured(directory: Path, options: argparse.Namespace) -> TrainerConfig:
    """Supervised fine-tuning in bf16 with the distributed optimizer."""
    config = make_config(
        directory,
        "--bf16",
        "--use-distributed-optimizer",
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        batch=batches(options),
        device="cuda",
    )
    model = ModelConfig(
        hf_checkpoint=str(directory), compile_layers=False if options.eager else None
    )
    return replace(config, model=model)


def batches(options: argparse.Namespace) -> BatchConfig:
    """Microbatches of at most so many tokens."""
    return BatchConfig(
        global_batch_size=options.sequences,
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=options.max_tokens,
    )


def made(options: argparse.Namespace) -> RankPayload:
    """Random tokens; all but a prompt of eight are trained on."""
    count, response = options.sequences, options.length - 8
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, VOCAB, (options.length,), generator=generator) for _ in range(count)]
    numbers = torch.arange(count)
    batch = TrainBatch(
        tokens=Ragged.from_tensors(rows),
        response_lengths=torch.full((count,), response),
        loss_mask=Ragged.from_tensors([torch.ones(response) for _ in rows]),
        rewards=torch.zeros(count),
        raw_rewards=torch.zeros(count),
        truncated=torch.zeros(count, dtype=torch.bool),
        sample_ids=numbers,
        group_ids=numbers,
        rollout_ids=numbers,
        rollout_token_counts=torch.full((count,), float(response)),
    )
    steps = plan(batch, ParallelLayout(), batches(options))
    rows_of_rank = steps.rows(0)
    return RankPayload(batch.select(rows_of_rank), steps.for_rank(0), rows_of_rank)


def parameters(shape: Shape) -> int:
    """Weights of the model, the tied embedding once."""
    attention = shape.hidden * 128 * (2 * shape.heads + 2 * 8) + 2 * 128
    layer = attention + 3 * shape.hidden * shape.ffn + 2 * shape.hidden
    return VOCAB * shape.hidden + shape.layers * layer + shape.hidden


def measured(trainer: TrainerRank, payload: RankPayload, steps: int) -> float:
    """Median seconds of a step, after one that compiles."""
    times: list[float] = []
    for iteration in range(steps + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        trainer.train(iteration, payload)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
