"""Write docs/reference/megatron.md from the tables of what Megatron's flags do here.

``uv run python scripts/generate_megatron_docs.py`` writes it; a test compares.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from slime_megatron.config import REQUIRED, megatron_flags
from slime_megatron.flags.effects import (
    OTHER_LAYERS,
    REFUSED,
    REFUSED_VALUES,
    WHAT_HAPPENS,
    WITHOUT_EFFECT,
)

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/megatron.md"

INTRODUCTION = """\
# Megatron's flags

Written by `scripts/generate_megatron_docs.py` from `slime_megatron.flags.effects`.

`slime-train` takes every flag of Megatron's parser (`slime-train --help-megatron`). Model,
optimizer, gradient buffers and parallel groups are Megatron's and built as its flags say; its
training loop is not used, and flags that only that loop reads are listed here. Every flag of the
parser is in one of these lists or has been found to do what it says
(`tests/slime_megatron/flags/test_effects.py`). To repeat what is so anyway is never a mistake.

With data or context parallelism on GPUs, `--overlap-grad-reduce --overlap-param-gather` let
gradients and weights travel while others are computed, as in
[these runs](../performance.md#several-gpus). They need `--use-distributed-optimizer`, which is on,
and are not taken for granted: with them, a parameter that gets no gradient in a rank's last
microbatch ends the step with an error.

Numbers out of a flag's range, and what Megatron's own validation refuses of learning rates, weight
decay, recomputation and overlap, end the command before anything starts, with every problem at once
(`slime_megatron.flags.ranges`, `slime_megatron.rules.training`).

`--moe-token-dispatcher-type flex`, with or without `--moe-enable-deepep`, needs the module
`deep_ep`. Where it is not installed, the command is refused: give `--moe-token-dispatcher-type
alltoall`. On a model without experts these flags have no effect.

## Adam's state in host memory

`--optimizer-cpu-offload` keeps float32 weights and Adam's moments, 12 bytes a parameter, in host
memory, where PyTorch's CPU kernel updates them with this rank's share of the machine's cores;
`--use-precision-aware-optimizer` comes with it and may be given.

* `--optimizer-offload-fraction` (1) is the share of the state that is kept there, by whole
  parameters; the rest stays on the GPU.
* `--overlap-cpu-optimizer-d2h-h2d` has gradients come and weights go while others are updated.
* Gradients and weights pass through little pinned memory; the state itself is not pinned.
* Steps are those of the state on the GPU, up to the rounding of another kernel. Checkpoints are the
  same: a run may be continued with the state elsewhere.
* `--offload-train` moves what is on the GPU and leaves the rest where it is. What will be in host
  memory is counted before the start.
* The state is in float32: `--exp-avg-dtype`, `--exp-avg-sq-dtype`, `--main-params-dtype` and
  `--main-grads-dtype` of another kind are refused, and so is an `--optimizer` other than `adam`.
  Without `--optimizer-cpu-offload`, `--use-precision-aware-optimizer` is refused: it is
  TransformerEngine's.
"""


def page() -> str:
    """The whole page."""
    built = {dest: f"`{value}`" for dest, value in REQUIRED.items()}
    values = [
        f"`{_spelled()[dest]} {value}`: {why}"
        for dest, refused in REFUSED_VALUES.items()
        for value, why in refused.items()
    ]
    said = [f"`{_spelled()[dest]} {value}`" for dest, value in WHAT_HAPPENS.items()]
    return (
        "\n\n".join(
            (
                INTRODUCTION.rstrip(),
                "## Refused",
                "They would change what is trained, or protect what is not protected that way.",
                _table(REFUSED, "flag", "instead"),
                f"{'; '.join(values)}. {', '.join(said)} is what happens, and may be given.",
                "## Fixed",
                "How models are built; a command line may repeat it.",
                _table(built, "flag", "value of Megatron's destination"),
                "## For a model of your own",
                "Layers that no `config.json` leads to: refused without "
                "`--custom-model-provider-path`.",
                _names(OTHER_LAYERS) + ".",
                "## Without effect",
                "A run that is given some of them says so in one line when it starts.",
                _table(WITHOUT_EFFECT, "flags", "why, or what does it"),
            )
        )
        + "\n"
    )


def _spelled() -> Mapping[str, str]:
    return {flag.dest: flag.names[0] for flag in reversed(megatron_flags())}


def _names(dests: Iterable[str]) -> str:
    return ", ".join(sorted(f"`{_spelled()[dest]}`" for dest in dests))


def _table(reasons: Mapping[str, str], left: str, right: str) -> str:
    """One row for each reason."""
    rows: dict[str, list[str]] = {}
    for dest, why in reasons.items():
        rows.setdefault(why, []).append(dest)
    body = (f"| {_names(dests)} | {why} |" for why, dests in rows.items())
    return "\n".join((f"| {left} | {right} |", "|---|---|", *body))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
