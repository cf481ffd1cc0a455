"""A small untrained model, demonstrations of sums, and problems to be examined on."""

import sys
from pathlib import Path

from slime_train.quickstart.cli import write_model
from slime_train.quickstart.task import write_task

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    write_model(directory / "model", seed=0)
    write_task(directory / "data", seed=0)
