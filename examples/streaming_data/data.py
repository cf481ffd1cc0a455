"""A small untrained model, demonstrations, and prompts in three formats; three lines are broken."""

import csv
import json
import sys
from pathlib import Path

import pyarrow
from pyarrow import parquet
from slime_train.quickstart.cli import write_model
from slime_train.quickstart.task import write_task

BAD_LINES = ('{"prompt": "1+1=?"', '{"question": "2+2=?"}', '{"prompt": "3+3=?", "label": "\xff"}')
"""No JSON, no label, no UTF-8."""


def split(train: Path, directory: Path) -> None:
    """Write the rows of ``train`` as jsonl (with bad lines in it), csv and a folder of parquet."""
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    third = len(rows) // 3
    lines = [json.dumps(row) for row in rows[:third]]
    lines[10:10] = BAD_LINES
    (directory / "sums.jsonl").write_bytes("\n".join(lines).encode("latin-1") + b"\n")
    with (directory / "sums.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "label"])
        writer.writeheader()
        writer.writerows(rows[third : 2 * third])
    (directory / "sums").mkdir(exist_ok=True)
    rest = rows[2 * third :]
    for part, start in enumerate(range(0, len(rest), 200)):
        table = pyarrow.Table.from_pylist(rest[start : start + 200])
        parquet.write_table(table, directory / f"sums/train-{part:05}.parquet")


def main(directory: Path) -> None:
    """Write model/ and data/."""
    write_model(directory / "model", seed=0)
    files = write_task(directory / "data", seed=0)
    split(files.train, directory / "data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
