"""``python -m slime_convert`` is the ``slime-convert`` command."""

import sys

from slime_convert.cli import main

if __name__ == "__main__":
    sys.exit(main())
