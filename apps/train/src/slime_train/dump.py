"""``--dump-config``: every resolved value and where it comes from."""

from collections.abc import Iterator

from slime_core.config.dump import dump_lines

from slime_train.resolve import Resolved
from slime_train.run_config import SECTIONS


def dump(resolved: Resolved) -> Iterator[str]:
    """Lines of the dump."""
    return dump_lines(resolved.draft, SECTIONS, resolved.config.megatron.argv, resolved.critic)
