"""``python train_async.py`` is ``slime-train-async``."""

import sys

from slime_train.cli import main_async

if __name__ == "__main__":
    sys.exit(main_async())
