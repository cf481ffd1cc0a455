"""Multi-latent attention (DeepSeek-V2 and later) on Megatron's local specification.

Queries and keys-and-values are projected down to narrow latents, normalised, and projected up to
heads; a key part of its own, shared by all heads, carries the rotary position::

    x -> q_down -> norm -> q_up -> [q | q_rot] per head       (or x -> q_proj without q-lora)
    x -> kv_down -> [latent | k_rot];  latent -> norm -> kv_up -> [k | v] per head

Megatron's module is used with four differences: every tensor-parallel rank holds the whole down
projections (its own splits and gathers them, which loses the other heads' part of the gradient of
``k_rot``), norms are ours, rotary angles come from the positions of a packed input, and the core
attention is ours.

Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
"""

from typing import Any

import torch
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from slime_core.errors import ConfigError
from torch import Tensor
from torch.nn import functional

from slime_megatron.mcore.layers.norm import RMSNorm
from slime_megatron.mcore.layers.packed_input import PackedInput

LATENT_NORM_EPS = 1e-6
"""Of the norms on latents, as in DeepSeek's own code and in transformers; the ``rms_norm_eps`` of
config.json is for the layers' norms and may be another. SGLang takes that one for both: the
same for DeepSeek V3 (1e-6); for Moonlight (1e-5) latents of variance v come out smaller by a part
in v / 4.5e-6."""


def complete_config(config: Any, args: Any) -> None:
    """Give the configuration what Megatron has flags for only under other names."""
    if config.multi_latent_attention and config.rope_type == "yarn":
        config.original_max_position_embeddings = args.yarn_original_max_position_embeddings
        config.beta_fast = args.yarn_beta_fast
        config.beta_slow = args.yarn_beta_slow


def use_latent_attention(self_attention: Any) -> None:
    """Put our module and norms into the specification of one layer's self-attention."""
    self_attention.module = LatentAttention
    self_attention.submodules.q_layernorm = LatentNorm
    self_attention.submodules.kv_layernorm = LatentNorm


class LatentNorm(RMSNorm):
    """The norm of a latent."""

    def __init__(self, config: Any, hidden_size: int, **_: Any) -> None:
        super().__init__(config, hidden_size, eps=LATENT_NORM_EPS)


class ReplicatedLinear(torch.nn.Module):
    """``x W^T`` with the whole ``W`` on every tensor-parallel rank.

    Under sequence parallelism each rank multiplies its part of the sequence, and Megatron adds the
    gradients by the mark on the weight.
    """

    def __init__(self, config: Any, rows: int, *, like: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(like.new_empty(rows, config.hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        if config.perform_initialization:
            config.init_method(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """The product and, as Megatron's layers have it, a bias."""
        return functional.linear(x, self.weight), None


class LatentRotary(torch.nn.Module):
    """The angles of Megatron's rotary embedding, plain or yarn, looked up by position."""

    def __init__(self, stock: Any, *, yarn: bool) -> None:
        super().__init__()
        table, self.mscale = stock.get_emb(2) if yarn else (stock.get_emb(2), 1.0)
        # Position 1 is turned by the frequencies themselves. They stay float32 in a 16-bit model.
        self.frequencies = table.reshape(2, -1)[1].float().clone()
        self.yarn = yarn

    def get_rotary_seq_len(
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Tensor,
        transformer_config: Any,
        packed_seq_params: PackedInput | None = None,
    ) -> Tensor:
        """The position of every row, in the shape the angles are wanted in."""
        if packed_seq_params is not None:
            # Megatron's module drops the batch dimension of a packed input.
            return packed_seq_params.positions[:, None]
        parts = transformer_config.tensor_model_parallel_size
        rows = len(transformer_input) * (parts if transformer_config.sequence_parallel else 1)
        return torch.arange(rows, device=transformer_input.device)[:, None, None]

    def forward(self, positions: Tensor, *, packed_seq: bool = False) -> Any:
        """Angles of shape [*positions, rotary size]; with yarn also the factor on their cosines."""
        self.frequencies = self.frequencies.to(positions.device)
        angles = positions[..., None] * self.frequencies
        return (angles, self.mscale) if self.yarn else angles


class LatentAttention(MLASelfAttention):
    """Megatron's multi-latent self-attention with the differences this module begins with."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        tp_size = config.tensor_model_parallel_size
        if tp_size > 1 and not config.sequence_parallel:
            raise ConfigError(
                f"--tensor-model-parallel-size {tp_size} of a model with multi-latent attention "
                "needs --sequence-parallel: give it too"
            )
        super().__init__(config, *args, **kwargs)
        rows = config.kv_lora_rank + config.qk_pos_emb_head_dim
        like: Any = self.linear_kv_down_proj.weight
        self.linear_kv_down_proj = ReplicatedLinear(config, rows, like=like)
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = ReplicatedLinear(config, config.q_lora_rank, like=like)
        self.rotary_pos_emb: Any = LatentRotary(
            self.rotary_pos_emb, yarn=config.rope_type == "yarn"
        )

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        """The modules as specified; Megatron insists on a fused norm where there is no q-lora."""
        names = "linear_q_proj linear_q_up_proj linear_kv_up_proj q_layernorm kv_layernorm"
        return {name: getattr(submodules, name) for name in names.split()}

    def _run_core_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: Any = None,
        attn_mask_type: Any = None,
        **_: Any,
    ) -> Tensor:
        """Attend; a packed input gets back the batch dimension that our core attention expects.

        The mask is causal, whatever the other arguments say.
        """
        if query.ndim == 3:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        core: Any = self.core_attention
        return core(query, key, value, attention_mask, packed_seq_params=packed_seq_params)
