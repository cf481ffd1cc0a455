"""MiMo-7B: a Qwen2 with layers that predict further tokens.

Those layers (``model.mtp_layers``) are not trained, and carried over unchanged into checkpoints
that are written.
"""

from dataclasses import replace

from slime_convert.families import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    model_type="mimo",
    title="MiMo-7B",
    carried=("model.mtp_layers.*",),
)
