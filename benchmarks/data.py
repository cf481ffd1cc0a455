"""Seconds to the first batch, and memory, of prompts read into memory and while they are needed.

Rows are chat messages of some hundred characters, rendered with a chat template and tokenized by a
tokenizer of transformers. Every way has a process of its own: its memory is that of the largest
moment, less what it had before it opened the data.

    first_batch_s   from opening the file to the first 32 groups of 8 samples
    first_cpu_s     of it, seconds that this process computed
    prompts_per_s   from there on
    memory_mb       after the first batch
    later_mb        after --prompts more
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "eager, 2 workers": {"num_data_workers": 2},
    "streaming": {"streaming_data": True},
    "streaming, skip": {"streaming_data": True, "data_error_policy": "skip"},
    "streaming, 2 workers": {"streaming_data": True, "num_data_workers": 2},
}
WORDS = ["how", "many", "apples", "are", "left", "when", "two", "horses", "eat", "three", "each"]


def main() -> None:
    """Measure and record, or be one of the processes that measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--words", type=int, default=100, help="of a prompt")
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, directory = options.measure
        print(json.dumps(measure(WAYS[way], Path(directory), options.prompts)))
        return
    results = []
    with tempfile.TemporaryDirectory() as directory:
        from slime_train.quickstart.model import write_tokenizer

        write_tokenizer(Path(directory), WORDS)
        for rows in options.rows:
            path = Path(directory) / "prompts.jsonl"
            write(path, rows, options.words)
            for way in WAYS:
                if rows > min(options.rows) and "streaming" not in way:
                    continue
                found = child(way, directory, options.prompts)
                size = round(path.stat().st_size / 2**20, 1)
                results.append({"way": way, "rows": rows, "file_mb": size, **found})
    settings = {name: value for name, value in vars(options).items() if name != "measure"}
    record("data", settings, results)


def child(way: str, directory: str, prompts: int) -> dict[str, Any]:
    """``measure`` in another process."""
    command = [sys.executable, __file__, "--measure", way, directory, "--prompts", str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(way: dict[str, Any], directory: Path, prompts: int) -> dict[str, Any]:
    """Open the file as ``way`` says, take a batch, take more."""
    from slime_core.config.data import DataConfig
    from slime_core.data.opening import open_stream
    from slime_core.data.prompts import prompt_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    data = DataConfig(
        prompt_data=(str(directory / "prompts.jsonl"),),
        apply_chat_template=True,
        rollout_shuffle=True,
        **way,
    )
    tokenizer.apply_chat_template([{"role": "user", "content": "warm"}], tokenize=False)
    before = memory()
    begin, computed = time.perf_counter(), time.process_time()
    stream = open_stream(prompt_rows(data, tokenizer), data, 8)
    stream.take(32)
    first, first_cpu = time.perf_counter() - begin, time.process_time() - computed
    small = memory() - before
    begin = time.perf_counter()
    for _ in range(prompts // 32):
        stream.take(32)
    seconds = time.perf_counter() - begin
    stream.close()
    return {
        "first_batch_s": first,
        "first_cpu_s": first_cpu,
        "prompts_per_s": prompts // 32 * 32 / seconds,
        "memory_mb": round(small, 1),
        "later_mb": round(memory() - before, 1),
    }


def memory() -> float:
    """The most this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path: Path, rows: int, words: int) -> None:
    """Questions of about ``words`` words."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 3 // 2)))
            messages = [{"role": "user", "content": text}]
            row = {"id": number, "prompt": messages, "label": str(number)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
