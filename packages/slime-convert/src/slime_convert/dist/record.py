"""What a converted checkpoint says about itself; the trainer compares it with its own model."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from slime_convert.dist.chunks import Layout
from slime_convert.families import Family
from slime_convert.saved_model import architecture

_CONTENT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""How Megatron is to read the files; no part of them belongs to an optimizer."""
BEFORE_THE_FIRST = -1
"""The iteration after which the weights were saved: training on begins with iteration 0."""


def common(family: Family, arguments: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Return what is saved beside the tensors, as plain data."""
    return {
        "iteration": BEFORE_THE_FIRST,
        "slime": {
            "slime_convert": version("slime-convert"),
            "model_type": family.model_type,
            "architecture": architecture(family, arguments),
            "layout": {
                "world": layout.tensor * layout.pipeline,
                "tensor": layout.tensor,
                "pipeline": layout.pipeline,
                "context": 1,
                "expert": 1,
            },
            "optimizer": None,
            "rng": False,
        },
        "content_metadata": dict(_CONTENT),
    }
