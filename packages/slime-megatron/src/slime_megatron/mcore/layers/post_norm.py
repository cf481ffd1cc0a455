"""Layers that normalise what attention and MLP give before it is added, as GLM-4's do.

For attention and MLP f: ``x + norm(f(norm(x)))``, where other models have ``x + f(norm(x))``.
"""

from functools import partial
from typing import Any

from megatron.core import parallel_state
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor

from slime_megatron.mcore.layers.norm import RMSNorm


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


class PostNorm(RMSNorm):
    """A norm that says of itself how it is kept in checkpoints.

    Of modules that do not, Megatron's MLP takes every tensor-parallel rank's copy for the first.
    """

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The weight, stacked over layers, a copy of it on each tensor-parallel rank."""
        groups: Any = parallel_state
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {},
            sharded_offsets,
            tp_group=groups.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )


def _norm(config: Any) -> RMSNorm:
    return PostNorm(config, config.hidden_size, eps=config.layernorm_epsilon)


def _summed(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias
