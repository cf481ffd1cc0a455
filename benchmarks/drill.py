"""What a run survives: ``slime-drill`` on its small task, or on the command after ``--``.

Runs the drill with the words given here, in ``outputs/drill`` unless they name another place, and
keeps its rows: those of other faults stay in the file of results, so that the table can be made in
slices. ``python benchmarks/drill.py --keep DRILL.JSON ...`` keeps those of drills that have run.
On an idle machine of two cores a start takes half a minute, and every row has one or two.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from record import RESULTS, record

SHOWN = ("kind", "fault", "phase", "ended", "detected_s", "recovered_s", "samples_lost")
SHOWN += ("samples_duplicated", "samples_with_other_tokens", "weights_equal", "seconds")
OF_KILLS = ("kills", "kills_by_phase")
PLACE = Path("outputs/drill")

Found = Mapping[str, Any]


def main() -> None:
    """Run the drill and record, also what there is of one that was interrupted."""
    words = sys.argv[1:]
    if words[:1] == ["--keep"]:
        keep(map(Path, words[1:]))
        return
    place = PLACE
    if "--output-dir" in words:
        place = Path(words[words.index("--output-dir") + 1])
    path = place / "drill.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "slime_core.drill.cli", "--output-dir", str(place), *words]
    try:
        subprocess.run(command, check=False)
    finally:
        keep([path] if path.exists() else [])


def keep(paths: Iterable[Path]) -> None:
    """Record what drills have written; kills of drivers in a file of their own."""
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"] | {"date": found["date"]}
        rows = found["rows"]
        if kills := [picked(row, (*SHOWN, *OF_KILLS)) for row in rows if row["kills"] is not None]:
            record("drill-driver-kills", settings, kills)
        if cells := [
            picked(row, (*SHOWN, "faults_in_run")) for row in rows if row["kills"] is None
        ]:
            record("drill", settings, merged(cells))


def picked(row: Found, names: Iterable[str]) -> dict[str, Any]:
    """The columns that are kept."""
    return {name: row[name] for name in names}


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows there are, with these in their places or after them."""
    path = RESULTS / "drill.json"
    kept: list[dict[str, Any]] = []
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))["rows"]
    table = {cell(row): row for row in [*kept, *rows] if row["phase"] != "any"}
    return list(table.values())


def cell(row: Found) -> tuple[str, str, str]:
    """Whom it struck, with what, when."""
    return row["kind"], row["fault"], row["phase"]


if __name__ == "__main__":
    main()
