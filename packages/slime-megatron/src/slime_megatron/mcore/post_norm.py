"""Layers that normalise what attention and MLP give before it is added (GLM-4)::

x + norm(attention(norm(x)))        x + norm(mlp(norm(x)))
"""

from functools import partial
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from slime_megatron.mcore.norm import RMSNorm


class PostNormAttention(SelfAttention):
    """Grouped-query attention with a norm behind its output projection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_norm = _norm(self.config)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """The normalised output, its bias included."""
        return self.post_norm(_summed(*super().forward(*args, **kwargs))), None


class PostNormMLP(MLP):
    """An MLP with a norm behind its output projection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_norm = _norm(self.config)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """The normalised output, its bias included."""
        return self.post_norm(_summed(*super().forward(*args, **kwargs))), None


def use_post_norms(layer: Any) -> None:
    """Put the two modules into the specification of one dense layer.

    Layers alike share one specification, which may have them already.
    """
    layer.self_attention.module = PostNormAttention
    assert layer.mlp.func.__self__ in (MLP, PostNormMLP), "post norms are for dense layers"
    layer.mlp = partial(PostNormMLP.as_mlp_submodule, **layer.mlp.keywords)


def _norm(config: Any) -> RMSNorm:
    return RMSNorm(config, config.hidden_size, eps=config.layernorm_epsilon)


def _summed(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias
