"""Where the time of an iteration goes in a whole run, colocated on one GPU.

``slime-train`` as a user starts it, with a random model at a published shape: prompts of equal
length, responses of lengths drawn once from a seeded distribution and imposed on the engine. The
share of generation and of the trainer's computing in a step, and what the rest is.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import GRAPHS, MODELS, config_of, machine_name, on_gpu, row, turn
from record import record
from slime_train.quickstart.model import CHARACTERS, write_qwen3

TARGET = 92.0
GENERATE = '''
import random

from slime_sglang import generate_single


async def imposed(args, sample, sampling_params):
    """A length between a quarter and seven quarters of the mean, by the sample's number."""
    mean = {mean}
    length = int(mean * random.Random(sample.index).uniform(0.25, 1.75))
    params = {{**sampling_params, "ignore_eos": True, "max_new_tokens": length}}
    return await generate_single(args, sample, params)
'''
REWARD = "async def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"


def main() -> None:
    """Run, read what the run wrote, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="Qwen3-0.6B" if on_gpu() else "tiny")
    parser.add_argument("--prompts", type=int, default=32 if on_gpu() else 4)
    parser.add_argument("--responses", type=int, default=8 if on_gpu() else 2)
    parser.add_argument("--input", type=int, default=512 if on_gpu() else 16)
    parser.add_argument("--mean-output", type=int, default=1024 if on_gpu() else 16)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("more", nargs="*", help="flags of slime-train, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        command = [sys.executable, "-m", "slime_train.cli", *words(options, directory)]
        with turn():
            done = subprocess.run(command, check=False, timeout=570)
        if done.returncode:
            for log in sorted((directory / "out" / "logs").rglob("*.log")):
                print(f"== {log.name}", *log.read_text().splitlines()[-15:], sep="\n", flush=True)
            raise SystemExit(done.returncode)
        rows = shares(options.model, directory / "out")
    record(f"end_to_end-{machine_name()}", vars(options), rows)


def words(options: argparse.Namespace, directory: Path) -> list[str]:
    """The command line of the run; files are written."""
    config = config_of(options.model)
    model = write_qwen3(directory / "model", config, seed=0, init_std=0.02)
    (directory / "imposed.py").write_text(GENERATE.format(mean=options.mean_output))
    (directory / "even.py").write_text(REWARD)
    write_prompts(directory / "prompts.jsonl", options)
    longest = int(1.75 * options.mean_output) + 1
    given: list[object] = [
        "--hf-checkpoint", model, "--prompt-data", directory / "prompts.jsonl",
        "--num-rollout", options.iterations, "--rollout-batch-size", options.prompts,
        "--n-samples-per-prompt", options.responses,
        "--global-batch-size", options.prompts * options.responses,
        "--rollout-max-response-len", longest, "--lr", "1e-6",
        "--custom-generate-function-path", f"{directory}/imposed.py:imposed",
        "--custom-rm-path", f"{directory}/even.py:even", "--output-dir", directory / "out",
    ]  # fmt: skip
    if on_gpu():
        given += [
            "--bf16", "--use-dynamic-batch-size", "--max-tokens-per-gpu", 32768,
            "--num-gpus-per-node", 1, "--sglang-attention-backend", "triton",
            "--sglang-cuda-graph-backend-prefill", "disabled",
            "--sglang-cuda-graph-bs-decode", *GRAPHS,
        ]  # fmt: skip
    return [str(word) for word in [*given, *options.more]]


def write_prompts(path: Path, options: argparse.Namespace) -> None:
    """Random characters, a token each."""
    draw = random.Random(0)
    characters = CHARACTERS.strip()
    count = options.prompts * options.iterations
    prompts = ["".join(draw.choices(characters, k=options.input)) for _ in range(count)]
    lines = [json.dumps({"prompt": prompt, "label": ""}) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n")


def shares(model: str, out: Path) -> list[dict[str, Any]]:
    """Of the iterations after the first, which compiles."""
    begins, spent = phases(out / "events.jsonl")
    metrics = merged(out / "metrics.jsonl")
    counted = sorted(begins)[1:-1] or sorted(begins)[:-1]
    total = sum(begins[i + 1] - begins[i] for i in counted)
    computing = {
        "generate": sum(metrics[i]["perf/rollout_time"] for i in counted),
        "train": sum(trainer_seconds(metrics[i]) for i in counted),
    }
    rows = [
        row("step", model, total / len(counted), "s"),
        *(row(f"{name} computing", model, s / len(counted), "s") for name, s in computing.items()),
    ]
    for name in ("generate", "train", "publish"):
        mean = sum(spent[i].get(name, 0.0) for i in counted) / len(counted)
        rows.append(row(f"phase {name}", model, mean, "s"))
    names = {name for i in counted for name in metrics[i] if name.startswith("perf/")}
    for name in sorted(name for name in names if name.endswith(("_s", "_time", "_per_s"))):
        mean = sum(metrics[i].get(name, 0.0) for i in counted) / len(counted)
        rows.append(row(name, model, mean, "as named"))
    share = 100 * sum(computing.values()) / total
    goal = TARGET if on_gpu() else None
    rows.insert(0, row("generate + train computing", model, share, "%", goal, most=False))
    return rows


def trainer_seconds(metrics: dict[str, float]) -> float:
    """Of the passes that score and the steps."""
    names = ("perf/log_probs_time", "perf/ref_log_probs_time", "perf/actor_train_time")
    return sum(metrics.get(name, 0.0) for name in names)


def phases(path: Path) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
    """When each iteration began to wait for its rollout, and seconds by phase."""
    begins: dict[int, float] = {}
    spent: dict[int, dict[str, float]] = {}
    open_at: dict[str, float] = {}
    last = 0.0
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if event["event"] != "phase":
            continue
        name, number, last = event["name"], event["iteration"], event["time"]
        if event["begin"]:
            open_at[name] = last
            if name == "generate":
                begins[number] = last
        else:
            of_iteration = spent.setdefault(number, {})
            of_iteration[name] = of_iteration.get(name, 0.0) + last - open_at.pop(name)
    begins[max(begins) + 1] = last
    return begins, spent


def merged(path: Path) -> dict[int, dict[str, float]]:
    """Metrics of each iteration."""
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values["step"], {}).update(values)
    return found


if __name__ == "__main__":
    main()
