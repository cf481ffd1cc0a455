"""The quickstart's model and task."""

import sys
from pathlib import Path

from slime_train.quickstart.cli import write_model
from slime_train.quickstart.task import write_task

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    write_model(directory / "model", seed=0)
    write_task(directory / "data", seed=0)
