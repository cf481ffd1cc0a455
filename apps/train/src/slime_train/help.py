"""The text of ``--help`` and of the helps for Megatron's, SGLang's and the router's flags."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from slime_core.config.flags import Flag, flags_of
from slime_core.config.help import describe, says
from slime_megatron.config import megatron_flags
from slime_sglang.config import router_flags, server_flags

from slime_train.run_config import SECTIONS

USAGE = """\
usage: slime-train --hf-checkpoint DIR --prompt-data FILE --num-rollout N [flags]

Post-train a language model: generate with SGLang, score, learn with Megatron-Core, publish.

  --help            slime's own flags (this text)
  --help-megatron   Megatron's flags, given as they are
  --help-sglang     flags of the SGLang engines, --sglang-*
  --help-router     flags of the router before them, --router-*
  --help WORD ...   of all of these, the flags that say these words
  --dump-config     every resolved value and where it comes from; starts nothing

Lists take words up to the next flag; --flag=value works. Of equal flags the last counts, but those
of --prompt-data and --eval-prompt-data add up.
"""

Part = tuple[str, Callable[[], Iterable[Flag]]]
"""A title and the flags below it."""

_FOREIGN: dict[str, Part] = {
    "--help-megatron": ("Flags of Megatron's own parser", megatron_flags),
    "--help-sglang": ("Flags of the SGLang engines", server_flags),
    "--help-router": ("Flags of the router", router_flags),
}
HELPS = ("-h", "--help", *_FOREIGN)


def help_on(topic: str, *behind: str) -> Iterator[str]:
    """The flags of one program; with words behind ``--help``, those of all that say them.

    ``behind``: the rest of the command line, of which words count up to the next flag.
    """
    words = [*itertools.takewhile(lambda word: not word.startswith("-"), behind)]
    if topic in _FOREIGN:
        parts = [_FOREIGN[topic]]
    else:
        parts = [*_slime(), *(_FOREIGN.values() if words else ())]
        yield f"flags that say {' '.join(words)}:" if words else USAGE
    found = False
    for title, flags in parts:
        entries = [*describe(flag for flag in flags() if says(flag, words))]
        if entries:
            found = True
            yield f"\n{title}"
            yield from entries
    if not found:
        yield "  none"


def _slime() -> Iterator[Part]:
    for section in SECTIONS.values():
        title = (inspect.getdoc(section) or "").split("\n", 1)[0]
        yield title, partial(flags_of, section, helps=True)
