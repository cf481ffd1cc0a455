"""Output tokens a second through router and client, next to SGLang's own bench_serving.

Both ask the same server in the same run, in turns, for the same prompts (token ids) and as many
tokens of each, at the same concurrency. bench_serving talks to the engine itself and takes plain
tokens; the client goes through the router and asks for log-probabilities, as training needs them.
"""

import argparse
import asyncio
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import GRAPHS, MODELS, machine_name, on_gpu, row, server_arguments, turn, write_shape
from record import record
from slime_core.types import Sample
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.fleet.router import RouterSpec, start_router
from slime_sglang.rollout.generation import Generation, GenerationSpec
from slime_sglang.server.launch import EngineSpec, start_engine
from transformers import AutoTokenizer

TARGET = 0.95


class Imposed(Sampling):
    """Responses of the full length, whatever the model says."""

    def request(self, sample: Sample, *, seed: int) -> dict[str, Any]:
        """With the end of text ignored, as bench_serving does."""
        return Sampling.request(self, sample, seed=seed) | {"ignore_eos": True}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="Qwen3-0.6B" if on_gpu() else "tiny")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=512 if on_gpu() else 16)
    parser.add_argument("--concurrency", type=int, default=256 if on_gpu() else 8)
    parser.add_argument("--input", type=int, default=256 if on_gpu() else 16)
    parser.add_argument("--output", type=int, default=256 if on_gpu() else 16)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        shape = write_shape(directory / "model", options.model)
        engine = start_engine(engine_spec(shape, directory / "logs", options))
        try:
            router = start_router(RouterSpec(worker_urls=[engine.url], log_dir=directory / "logs"))
            try:
                with turn():
                    rows = compared(options, shape, engine.url, router.url, directory)
            finally:
                router.stop()
        finally:
            engine.stop()
    record(f"rollout-{machine_name()}", vars(options), rows)


def engine_spec(shape: Path, logs: Path, options: argparse.Namespace) -> EngineSpec:
    """One engine; no prefix is shared, so that no order of requests is favoured."""
    if not on_gpu():
        server = server_arguments(max_total_tokens=8192, disable_radix_cache=True)
        return EngineSpec(
            name="engine", model_path=shape, device="cpu", log_dir=logs, server=server
        )
    server = server_arguments(
        disable_cuda_graph=False,
        cuda_graph_backend_prefill="disabled",
        cuda_graph_bs_decode=GRAPHS,
        disable_radix_cache=True,
        mem_fraction_static=0.9,
        max_total_tokens=220_000,
        max_running_requests=options.concurrency,
    )
    gpus = (options.gpu,)
    return EngineSpec(
        name="e", model_path=shape, device="cuda", gpus=gpus, log_dir=logs, server=server
    )


def compared(
    options: argparse.Namespace, shape: Path, engine: str, router: str, directory: Path
) -> list[dict[str, Any]]:
    """Speeds of the three, in turns, and their ratios."""
    prompts = make_prompts(options, shape)
    asyncio.run(ours(options, prompts[: options.concurrency], engine, router))  # warm
    speeds: dict[str, list[float]] = {"client": [], "plain": [], "with log-probs": []}
    for number in range(options.repeats):
        speeds["plain"].append(theirs(options, shape, engine, directory / f"plain-{number}"))
        speeds["client"].append(asyncio.run(ours(options, prompts, engine, router)))
        out = directory / f"log-probs-{number}"
        speeds["with log-probs"].append(theirs(options, shape, engine, out, "--return-logprob"))
    median = {name: statistics.median(found) for name, found in speeds.items()}
    model, ratios = options.model, {n: median["client"] / median[n] for n in list(median)[1:]}
    goal = TARGET if on_gpu() else None
    return [
        row("router and client", model, median["client"], "tokens/s"),
        row("bench_serving", model, median["plain"], "tokens/s"),
        row("bench_serving --return-logprob", model, median["with log-probs"], "tokens/s"),
        row("client / bench_serving", model, ratios["plain"], "ratio", goal, most=False),
        row(
            "client / bench_serving --return-logprob", model, ratios["with log-probs"], "ratio",
            goal, most=False,
        ),
    ]  # fmt: skip


def make_prompts(options: argparse.Namespace, shape: Path) -> list[list[int]]:
    """Those that bench_serving makes of random ids."""
    from sglang.benchmark.datasets.random import sample_random_requests

    rows = sample_random_requests(
        input_len=options.input, output_len=options.output, num_prompts=options.prompts,
        range_ratio=1.0, tokenizer=AutoTokenizer.from_pretrained(shape), dataset_path="",
        random_sample=False, return_text=False,
    )  # fmt: skip
    return [[int(token) for token in each.prompt] for each in rows]


async def ours(
    options: argparse.Namespace, prompts: list[list[int]], engine: str, router: str
) -> float:
    """Output tokens a second of the client that runs use."""
    spec = GenerationSpec(
        router_url=router,
        engine_urls=[engine],
        sampling=Imposed(max_response_len=options.output),
        concurrency=options.concurrency,
    )
    async with Generation(spec, None, lambda: None) as generation:
        generation.begin(0)
        samples = [Sample(index=i, tokens=list(tokens)) for i, tokens in enumerate(prompts)]
        begin = time.perf_counter()
        await asyncio.gather(*(generation(sample) for sample in samples))
        seconds = time.perf_counter() - begin
    made = sum(sample.response_length for sample in samples)
    assert made == len(prompts) * options.output, "every response has its full length"
    return made / seconds


def theirs(options: argparse.Namespace, shape: Path, engine: str, out: Path, *more: str) -> float:
    """What bench_serving reports; called in this process, which has imported it already."""
    from sglang.benchmark.serving import cli_main

    words = [
        "--backend", "sglang", "--base-url", engine, "--model", shape, "--tokenizer", shape,
        "--dataset-name", "random-ids", "--tokenize-prompt", "--num-prompts", options.prompts,
        "--random-input-len", options.input, "--random-output-len", options.output,
        "--random-range-ratio", 1.0, "--max-concurrency", options.concurrency,
        "--disable-stream", "--disable-tqdm", "--temperature", 1.0, "--output-file", out, *more,
    ]  # fmt: skip
    before = sys.argv
    sys.argv = ["bench_serving", *map(str, words)]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli_main()
    finally:
        sys.argv = before
    found = json.loads(out.read_text().splitlines()[-1])
    assert found["completed"] == options.prompts, found
    return float(found["output_throughput"])


if __name__ == "__main__":
    main()
