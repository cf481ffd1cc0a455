"""How a result is written down and shown."""

import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_VERSIONS = (
    "slime-core", "torch", "megatron-core", "flash-attn-4", "transformer-engine", "sglang", "ray",
    "transformers",
)  # fmt: skip


def record(name: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``benchmarks/results/<name>.json`` and print its rows as a table."""
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"written: {path}")


def versions() -> dict[str, str | None]:
    """Of what matters; None for what is not installed here."""
    found: dict[str, str | None] = {}
    for distribution in _VERSIONS:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = None
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpus = len(os.sched_getaffinity(0))
    return {"cpus": cpus, "memory_gib": round(memory / 2**30, 1), "gpus": gpus}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results in columns."""
    rows = [list(results[0]), *([_shown(value) for value in r.values()] for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
