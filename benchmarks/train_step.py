"""Tokens a second: slime's trainer next to plain Hugging Face, same model, same tokens.

Both take the same optimizer steps of supervised fine-tuning: forward, backward, gradient clipping,
Adam. Hugging Face pads each microbatch to its longest sequence, as its trainer does; slime packs.
They take turns in one process, so that what else the machine does meets both.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import record
from slime_megatron.stages import RankPayload
from slime_train.facts import gather
from slime_train.quickstart.model import VOCAB_SIZE, qwen3_config, write_qwen3
from slime_train.resolve import resolve
from slime_train.rollout_host import RolloutHost
from slime_train.run_config import RunConfig
from slime_train.sources import read_sources
from slime_train.trainer_host import TrainerHost
from transformers import AutoModelForCausalLM

SAMPLES = 32
MICRO_BATCH = 4
LEARNING_RATE = 1e-4


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--longest", type=int, default=256, help="response characters")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        config = qwen3_config(num_hidden_layers=options.layers, hidden_size=options.hidden)
        model = write_qwen3(directory / "model", config, seed=0, init_std=0.02)
        write_conversations(directory / "data.jsonl", longest=options.longest)
        run = run_config(model, directory / "data.jsonl", directory)
        payload = first_payload(run, directory)
        learners = {
            "slime (Megatron-Core)": slime_learner(run, payload, directory),
            "Hugging Face": hugging_face_learner(model, payload),
        }
        seconds = measure(learners, options.steps)
    tokens = payload.batch.tokens.values.numel()
    record(
        "train_step",
        {**vars(options), "tokens_per_step": tokens, "vocab_size": VOCAB_SIZE, "dtype": "float32"},
        [
            {
                "trainer": name,
                "tokens_per_s": tokens / statistics.median(times),
                "step_s": statistics.median(times),
                "fastest_step_s": min(times),
            }
            for name, times in seconds.items()
        ],
    )


def write_conversations(path: Path, *, longest: int) -> None:
    """Questions of a few characters, answers of very different lengths."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    with path.open("w", encoding="utf-8") as file:
        for _ in range(SAMPLES):
            answer = "".join(rng.choices(letters, k=rng.randint(longest // 8, longest)))
            messages = [
                {"role": "user", "content": "".join(rng.choices(letters, k=16))},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def run_config(model: Path, data: Path, output: Path) -> RunConfig:
    """The configuration of a fine-tuning run of one step an iteration."""
    words = f"""--hf-checkpoint {model} --prompt-data {data} --input-key messages
        --output-dir {output} --loss-type sft_loss --calculate-per-token-loss --num-rollout 1000
        --rollout-batch-size {SAMPLES} --global-batch-size {SAMPLES} --lr {LEARNING_RATE}
        --use-dynamic-batch-size --max-tokens-per-gpu 2048 --device cpu"""
    raw = read_sources(words.split())
    return resolve(raw, gather(raw)).config


def first_payload(run: RunConfig, directory: Path) -> RankPayload:
    """What the trainer would be sent in the first iteration."""
    host = RolloutHost(run, directory)
    host.start(None)
    payloads, _ = host.generate(0)
    return payloads[0]


def slime_learner(run: RunConfig, payload: RankPayload, directory: Path) -> Callable[[], None]:
    """One optimizer step of slime's trainer."""
    host = TrainerHost(run, 0, 1)
    host.initialize(f"file://{directory}/rendezvous", None)
    return lambda: void(host.train(0, payload))


def hugging_face_learner(directory: Path, payload: RankPayload) -> Callable[[], None]:
    """The same step with transformers and torch's own optimizer."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    batch = payload.batch
    samples = list(zip(batch.tokens.split(), batch.response_lengths.tolist(), strict=True))
    trained = float(batch.loss_mask.values.sum())

    def step() -> None:
        optimizer.zero_grad()
        for begin in range(0, len(samples), MICRO_BATCH):
            part = samples[begin : begin + MICRO_BATCH]
            width = max(len(tokens) for tokens, _ in part)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, (tokens, response) in enumerate(part):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
                labels[row, len(tokens) - response : len(tokens)] = tokens[-response:]
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            (loss / trained).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure(learners: dict[str, Callable[[], None]], steps: int) -> dict[str, list[float]]:
    """Seconds of each step; the learners take turns, the first two turns do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(steps + 2):
        for name, step in learners.items():
            begin = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def void(_: object) -> None:
    """Forget a result."""


if __name__ == "__main__":
    main()
