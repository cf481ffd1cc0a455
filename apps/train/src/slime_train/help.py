"""The text of ``--help`` and of the helps for Megatron's, SGLang's and the router's flags."""

import inspect
from collections.abc import Iterable, Iterator

from slime_core.config.flags import Flag, flags_of
from slime_core.config.help import describe

from slime_train.run_config import SECTIONS

USAGE = """\
usage: slime-train --hf-checkpoint DIR --prompt-data FILE --num-rollout N [flags]

Post-train a language model: generate with SGLang, score, learn with Megatron-Core, publish.

  --help            slime's own flags (this text)
  --help-megatron   Megatron's flags, given as they are
  --help-sglang     flags of the SGLang engines, --sglang-*
  --help-router     flags of the router before them, --router-*
  --dump-config     every resolved value and where it comes from; starts nothing

Lists take words up to the next flag; --flag=value works. Of equal flags the last counts, but those
of --prompt-data and --eval-prompt-data add up.
"""


def slime_help() -> Iterator[str]:
    """Slime's flags by section."""
    yield USAGE
    for section in SECTIONS.values():
        title = (inspect.getdoc(section) or "").split("\n", 1)[0]
        yield f"\n{title}"
        yield from describe(flags_of(section, helps=True))


def foreign_help(title: str, flags: Iterable[Flag]) -> Iterator[str]:
    """Another program's flags."""
    yield title
    yield from describe(flags)
