"""GB/s and peak memory of converting a checkpoint, next to ``cp`` of the same bytes.

The checkpoint has the shapes of Qwen3-4B in bfloat16 (8 GB), or its first layers where the disk has
no room for three copies. Every way is a process of its own that ends with its output on the disk
(``cp`` is followed by ``sync`` of what it wrote), and the source is read once before each, so that
all find as much of it in the page cache.

    gb_per_s     bytes of the source over seconds, process start included; the best of all repeats
    relative     to the speed of cp
    peak_gb      largest resident set of the process
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from record import record
from slime_convert.families import find
from slime_convert.hf import write_hf
from slime_convert.published import PRESETS
from torch import Tensor

PRESET = "qwen3-4B"
WARM_BYTES = 64 << 20


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="where to put some 4 times the checkpoint")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        root = Path(name)
        source = write_source(root, options.layers)
        load = os.getloadavg()[0]
        results = measure(root, source, options.repeats)
    loads = [round(value, 1) for value in (load, os.getloadavg()[0])]
    settings = {"preset": PRESET, "layers": options.layers, "repeats": options.repeats}
    settings["load_average_before_and_after"] = loads
    record("convert", settings, results)


def write_source(root: Path, layers: int) -> Path:
    """Random weights, in the files a published model has."""
    config = {**PRESETS[PRESET], "num_hidden_layers": layers, "torch_dtype": "bfloat16"}
    given = root / "config"
    given.mkdir()
    (given / "config.json").write_text(json.dumps(config))
    table = find(config).parameters(config).hf_tensors
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        noise = torch.randn(1 << 24, generator=generator).mul_(0.02).bfloat16()
        for number, (name, tensor) in enumerate(table.items()):
            count = torch.Size(tensor.shape).numel()
            repeated = noise.roll(number).repeat(-(-count // len(noise)))
            yield name, repeated[:count].view(tensor.shape)

    return write_hf(root / "hf", tensors(), source=given)


def measure(root: Path, source: Path, repeats: int) -> list[dict[str, Any]]:
    """Each way in turn, ``repeats`` times; the best of each, as other work disturbs."""
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    dist, back, copy = root / "dist", root / "back", root / "copy"
    convert = [sys.executable, "-m", "slime_convert"]
    ways: dict[str, tuple[Sequence[str], Path, Path]] = {
        "cp": (["bash", "-c", f"cp -r {source} {copy} && sync {copy}/*"], source, copy),
        "hf-to-dist": (
            [*convert, "hf-to-dist", "--hf", f"{source}", "--out", f"{dist}"],
            source,
            dist,
        ),
        "verify": ([*convert, "verify", "--hf", f"{source}", "--dist", f"{dist}"], source, back),
        "dist-to-hf": (
            [
                *(*convert, "dist-to-hf", "--dist", f"{dist}", "--hf-config", f"{source}"),
                *("--out", f"{back}"),
            ],
            dist,
            back,
        ),
    }
    best: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for way, (command, read, written) in ways.items():
            shutil.rmtree(written, ignore_errors=True)
            os.sync()
            warm(read)
            row = run(command, size)
            print(f"{way}: {row}")
            if way not in best or row["gb_per_s"] > best[way]["gb_per_s"]:
                best[way] = row
        for path in (copy, back):
            shutil.rmtree(path, ignore_errors=True)
    reference = best["cp"]["gb_per_s"]
    return [
        {"way": way, "gb": size / 1e9, **row, "relative": row["gb_per_s"] / reference}
        for way, row in best.items()
    ]


def warm(directory: Path) -> None:
    """Read every file once."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(WARM_BYTES):
                    pass


def run(command: Sequence[str], size: int) -> dict[str, Any]:
    """Run a process to its end."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        peak = max(peak, _peak(status))
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": seconds, "gb_per_s": size / 1e9 / seconds, "peak_gb": peak / 1e9}


def _peak(status: Path) -> int:
    """The kernel's own high-water mark; that of ``wait4`` begins with the parent's memory."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
