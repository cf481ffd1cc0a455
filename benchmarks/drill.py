"""What a run survives: ``slime-drill`` on its small task, or on the command after ``--``.

Runs the drill with the words given here and keeps its rows. On an idle machine of two cores every
row takes about a minute.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

SHOWN = ("kind", "fault", "phase", "ended", "detected_s", "recovered_s", "samples_lost")
SHOWN += ("samples_duplicated", "samples_with_other_tokens", "weights_equal", "kills", "seconds")


def main() -> None:
    """Run the drill and record."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["-m", "slime_core.drill.cli", "--output-dir", scratch, *sys.argv[1:]]
        subprocess.run([sys.executable, *words], check=False)
        keep(Path(scratch) / "drill.json")


def keep(path: Path) -> None:
    """Record what a drill has written."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [{name: row[name] for name in SHOWN} for row in found["results"]]
    record("drill", found["settings"], rows)


if __name__ == "__main__":
    main()
