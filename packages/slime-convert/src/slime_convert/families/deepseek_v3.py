"""DeepSeek V3, V3.1 and R1, Moonlight, Kimi K2: latent attention, experts scored by sigmoid.

The layer after the decoder's last one predicts a further token (``num_nextn_predict_layers``). It
is not trained, and carried over unchanged into checkpoints that are written.
"""

from dataclasses import replace
from typing import Any

from slime_convert.blocks import dense, mla, moe
from slime_convert.family import Family
from slime_convert.hf_config import require
from slime_convert.rules import HfConfig


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments. Implementations disagree about groups that are not given."""
    require(config, "n_group", "topk_group")
    return mla.arguments(config) | moe.sigmoid_arguments(config)


def dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that the rules name."""
    return mla.dims(config) | moe.sigmoid_dims(config)


FAMILY = Family(
    model_type="deepseek_v3",
    title="DeepSeek V3, V3.1 and R1, Moonlight-16B-A3B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *mla.attention(),
        *moe.sigmoid_rules(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dims,
    counts=moe.sigmoid_counts,
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
    carried=("model.layers.{i}.*",),
)

KIMI_K2 = replace(FAMILY, model_type="kimi_k2", title="Kimi K2")
