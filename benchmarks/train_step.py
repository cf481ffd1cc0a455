"""How fast the trainer takes whole steps: its use of the GPU, and next to transformers' own model.

A step is everything the trainer does with a batch, publishing apart: packing, forward, backward,
gradient norm, clipping, Adam. Weights are random at the shapes of published models. Utilisation
counts (6 N + 6 * layers * heads * head_dim * length) flops a token, N parameters, over the H200's
989 TFLOP/s of dense bf16; work done twice does not count.

transformers' Qwen3, compiled, with SDPA and full logits takes the same sequences, as many at once
as fit, with torch's fused AdamW on its bf16 weights: less than what the trainer does, which keeps
weights and gradients in float32 as well. On a CPU a tiny model in float32 shows that the same code
runs. With --layouts, several ranks share the model; their rate a GPU is compared with one GPU's.
Of models with experts, N counts the weights that a token meets; tokens are spread evenly over them,
at random, as a trained router nearly does and one of random weights does not.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from measuring import wait
from record import record

PEAK_FLOPS = 989e12
HEAD = 128
EVENLY = ("--moe-grouped-gemm", "--moe-router-force-load-balancing")


@dataclass(frozen=True)
class Experts:
    """Of every layer."""

    count: int
    of_a_token: int
    ffn: int


@dataclass(frozen=True)
class Shape:
    """A Qwen3 and how it is measured."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    key_value_heads: int = 8
    vocab: int = 151_936
    experts: Experts | None = None
    at_once: int = 32_768
    """Tokens of a microbatch that fit into an H200's memory."""
    utilisation: dict[int, float] = field(default_factory=dict[int, float])
    """Targets in percent by length of sequences."""
    ratio: float | None = None
    """Target next to transformers at 4,096 tokens."""

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        from slime_testing.qwen3_shapes import qwen3_config, with_experts

        config = qwen3_config(
            self.hidden,
            self.layers,
            self.heads,
            self.ffn,
            key_value_heads=self.key_value_heads,
            head_dim=HEAD,
            vocab=self.vocab,
        )
        if self.experts is None:
            return config
        return with_experts(config, *astuple(self.experts))

    @property
    def parameters(self) -> int:
        """Weights that a token meets, an embedding that is the output layer, too, once."""
        groups = 2 * self.heads + 2 * self.key_value_heads
        attention = self.hidden * HEAD * groups + 2 * HEAD
        ffn = self.ffn
        if self.experts is not None:
            ffn = self.experts.of_a_token * self.experts.ffn
            attention += self.experts.count * self.hidden
        layer = attention + 3 * self.hidden * ffn + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * layer + self.hidden

    def flops(self, tokens: int, length: int) -> float:
        """Of a step."""
        return tokens * (6 * self.parameters + 6 * self.layers * self.heads * HEAD * length)


@dataclass(frozen=True)
class Layout:
    """How ranks share a model."""

    data: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    """Of the data-parallel ranks those that divide experts among them."""
    target: float | None = None
    """In percent of one GPU's rate, a GPU."""

    @property
    def ranks(self) -> int:
        """Of all of them."""
        return self.data * self.tensor * self.context

    @property
    def flags(self) -> tuple[str, ...]:
        """Megatron's."""
        flags: tuple[str, ...] = ()
        if self.tensor > 1:
            flags += ("--tensor-model-parallel-size", str(self.tensor), "--sequence-parallel")
        if self.context > 1:
            flags += ("--context-parallel-size", str(self.context))
        if self.expert > 1:
            flags += ("--expert-model-parallel-size", str(self.expert))
        if self.data > 1:
            flags += ("--overlap-grad-reduce", "--overlap-param-gather")
        return flags


SHAPES = {
    "tiny": Shape(128, 2, 2, 256, key_value_heads=2, vocab=1000, at_once=512),
    "tiny with experts": Shape(
        128, 2, 2, 256, key_value_heads=2, vocab=1000, experts=Experts(8, 2, 64), at_once=512
    ),
    "Qwen3-0.6B": Shape(1024, 28, 16, 3072, utilisation={4096: 45.0, 32_768: 45.0}, ratio=1.7),
    "Qwen3-1.7B": Shape(2048, 28, 16, 6144, at_once=16_384, utilisation={4096: 53.0}, ratio=1.4),
    "Qwen3-4B": Shape(2560, 36, 32, 9728, at_once=8192, utilisation={4096: 57.0}),
    "Qwen3-30B-A3B of 6 layers": Shape(
        2048, 6, 32, 6144, key_value_heads=4, experts=Experts(128, 8, 768), at_once=16_384
    ),
}
LAYOUTS = {
    "DP2": Layout(data=2),
    "TP2": Layout(tensor=2),
    "CP2": Layout(context=2),
    "DP4": Layout(data=4, target=90.0),
    "TP2 x DP2": Layout(data=2, tensor=2, target=75.0),
    "CP2 x DP2": Layout(data=2, context=2, target=80.0),
    "EP2": Layout(data=2, expert=2),
    "EP4": Layout(data=4, expert=4),
}


@dataclass(frozen=True)
class Case:
    """One measurement."""

    model: str
    length: int
    sequences: int
    """In a step of one data-parallel rank."""
    steps: int
    layout: Layout = Layout()
    at_once: int | None = None
    eager: bool = False
    attention: str = "auto"

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return SHAPES[self.model]

    @property
    def microbatch(self) -> int:
        """Its tokens."""
        return max(self.at_once or self.shape.at_once, self.length)

    @property
    def tokens(self) -> int:
        """In a step of all ranks."""
        return self.length * self.sequences * self.layout.data


def main() -> None:
    """Measure and record."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    models = [name for name in SHAPES if name.startswith("tiny") != on_gpu]
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=models)
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096 if on_gpu else 64])
    parser.add_argument("--tokens", type=int, default=131_072 if on_gpu else 1024, help="of a step")
    parser.add_argument("--at-once", type=int, help="tokens of a microbatch")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile layers")
    parser.add_argument("--alone", action="store_true", help="not next to transformers")
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=[])
    parser.add_argument("--attention-backend", default="auto", help="the trainer's flag")
    parser.add_argument("--part", default="", help="ends the name of the results' file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for length in options.lengths:
            case = Case(
                model=model,
                length=length,
                sequences=max(1, options.tokens // length),
                steps=options.steps,
                at_once=options.at_once,
                eager=options.eager,
                attention=options.attention_backend,
            )
            rows += compared(case, options)
    name = torch.cuda.get_device_name(0).replace(" ", "-").lower() if on_gpu else "cpu"
    if options.layouts:
        name = f"{torch.cuda.device_count()}x{name}"
    part = f"-{options.part}" if options.part else ""
    record(f"train_step-{name}{part}", vars(options), rows)


def compared(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model and length."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, unit: str, target: float | None = None) -> None:
        met = None if target is None else value >= target
        what = f"{what}, {case.sequences} x {case.length} tokens a step"
        rows.append(
            {"what": what, "model": case.model, "value": value, "unit": unit}
            | {"target": target, "met": met}
        )
        print(rows[-1], flush=True)

    found = measured(ours, case)
    speed = case.tokens / found["seconds"]
    if torch.cuda.is_available():
        used = 100 * case.shape.flops(case.tokens, case.length) / found["seconds"] / PEAK_FLOPS
        add("utilisation", used, "%", case.shape.utilisation.get(case.length))
    add("speed", speed, "tokens/s")
    add("peak memory", found["memory"] / 2**30, "GiB")
    if not options.alone:
        other = measured(transformers, case)
        theirs = case.tokens / other["seconds"]
        add("transformers' speed", theirs, "tokens/s")
        add("transformers' peak memory", other["memory"] / 2**30, "GiB")
        add("speed over transformers'", speed / theirs, "times", case.shape.ratio)
    for name in options.layouts:
        shared = replace(case, layout=LAYOUTS[name])
        found = measured(ours, shared)
        rate = shared.tokens / found["seconds"] / shared.layout.ranks
        add(f"{name}: speed of a GPU", rate, "tokens/s")
        add(f"{name}: of one GPU's", 100 * rate / speed, "%", shared.layout.target)
    return rows


def measured(function: Callable[..., None], case: Case) -> dict[str, float]:
    """Run ``function`` on every rank in processes of their own; what the first one wrote."""
    ranks = case.layout.ranks
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(case.shape.config()))
        mp.spawn(function, (ranks, case, scratch), nprocs=ranks)
        return json.loads((Path(scratch) / "result").read_text())


def ours(rank: int, ranks: int, case: Case, scratch: str) -> None:
    """Steps of the trainer."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.config.batch import BatchConfig
    from slime_core.config.model import ModelConfig
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_config, make_payload

    class Untrained(TrainerRank):
        def _load_weights(self, load: Path | None) -> None:
            """There is no checkpoint of these shapes."""

    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    on_gpu = torch.cuda.is_available()
    shared = case.layout
    batches = BatchConfig(
        global_batch_size=case.sequences * shared.data,
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=case.microbatch // shared.context,
    )
    config = make_config(
        Path(scratch),
        *(("--bf16",) if on_gpu else ()),
        "--use-distributed-optimizer",
        *(EVENLY if case.shape.experts else ()),
        *("--attention-backend", case.attention),
        *shared.flags,
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        batch=batches,
        model=ModelConfig(hf_checkpoint=scratch, compile_layers=False if case.eager else None),
        device="cuda" if on_gpu else "cpu",
    )
    trainer = Untrained(config, rank, ranks)
    trainer.initialize(f"file://{scratch}/rendezvous")
    layout = ParallelLayout(dp=shared.data, tp=shared.tensor, cp=shared.context, ep=shared.expert)
    payload = make_payload(sequences(case), layout, batches, rank)
    found = timed(lambda step: trainer.train(step, payload), case.steps)
    if rank == 0:
        (Path(scratch) / "result").write_text(json.dumps(found))
    trainer.shutdown()


def sequences(case: Case) -> Any:
    """Random tokens; all but a prompt of eight are trained on."""
    from slime_core.batch import Ragged, TrainBatch

    rows = drawn(case, case.sequences * case.layout.data)
    count, response = len(rows), case.length - 8
    numbers = torch.arange(count)
    return TrainBatch(
        tokens=Ragged.from_tensors(list(rows)),
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


def drawn(case: Case, count: int) -> torch.Tensor:
    """[count, length] token ids."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, case.shape.vocab, (count, case.length), generator=generator)


def transformers(rank: int, ranks: int, case: Case, scratch: str) -> None:
    """Steps of transformers' model; fewer sequences at once where memory does not suffice."""
    at_once = min(16_384, case.microbatch)
    while True:
        try:
            found = step_of_transformers(case, scratch, max(1, at_once // case.length))
        except torch.OutOfMemoryError:
            at_once //= 2
            torch.cuda.empty_cache()
        else:
            (Path(scratch) / "result").write_text(json.dumps(found))
            return


def step_of_transformers(case: Case, scratch: str, at_once: int) -> dict[str, float]:
    """Median seconds of a step of ``at_once`` sequences at a time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(scratch),
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            attn_implementation="sdpa",
        )
    if on_gpu:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=on_gpu)
    rows = drawn(case, case.sequences).to(device)
    labels = rows.clone()
    labels[:, :8] = -100
    trained = float((labels[:, 1:] != -100).sum())

    def step(_: int) -> None:
        optimizer.zero_grad()
        for ids, wanted in zip(rows.split(at_once), labels.split(at_once), strict=True):
            logits = model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten(), reduction="sum"
            )
            (loss / trained).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timed(step, case.steps)


def timed(step: Callable[[int], object], steps: int) -> dict[str, float]:
    """Median seconds of a step, after one that compiles, and the most device memory."""
    times: list[float] = []
    for number in range(steps + 1):
        wait()
        begin = time.perf_counter()
        step(number)
        wait()
        times.append(time.perf_counter() - begin)
    memory = float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
    return {"seconds": statistics.median(times[1:]), "memory": memory}


if __name__ == "__main__":
    main()
