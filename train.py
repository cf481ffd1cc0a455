"""``python train.py`` is ``slime-train``."""

import sys

from slime_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
