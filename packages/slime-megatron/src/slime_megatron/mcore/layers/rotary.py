"""Rotary position embedding by explicit positions: one row per packed token."""

from functools import wraps
from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import (
    _rotate_half,  # pyright: ignore[reportPrivateUsage]
)
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer import attention
from torch import Tensor

from slime_megatron.mcore.layers.packed_input import PackedInput

_TABLE_DIM = 5


class PositionRotary(RotaryEmbedding):
    """Looks up the cosines and sines of the positions a packed input carries.

    Megatron's own module returns the angles of 0, 1, 2, ... and cuts them per sequence in every
    layer, which asks the device for the lengths each time. Here each packed row, of whichever
    sequence and whichever context-parallel chunk, gets its own once per microbatch. Cosines and
    sines, not angles: compiled layers would compute them anew for every element of every head.
    """

    table_dtype: torch.dtype = torch.float32

    def get_rotary_seq_len(  # type: ignore[override]
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Any,
        transformer_config: Any,
        packed_seq_params: PackedInput | None = None,
    ) -> Any:
        """Pass the packed input on to ``forward``, which needs its positions, not a length."""
        if packed_seq_params is None:
            return super().get_rotary_seq_len(
                inference_context, transformer, transformer_input, transformer_config
            )
        return packed_seq_params

    def forward(self, packed: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Cosines and sines of shape [tokens, 1, 1, 2, head_dim]."""
        if not isinstance(packed, PackedInput):
            return super().forward(packed, **kwargs)
        self.inv_freq = self.inv_freq.to(packed.positions.device)
        positions = packed.positions.to(self.inv_freq.dtype)
        factor: Any = self.seq_len_interpolation_factor
        if factor is not None:
            positions = positions / factor
        angles = torch.outer(positions, self.inv_freq)
        if self.rotary_interleaved:
            angles = angles.repeat_interleave(2, dim=-1)
        else:
            angles = torch.cat((angles, angles), dim=-1)
        table = torch.stack((angles.cos(), angles.sin()), dim=1)
        return table[:, None, None].to(self.table_dtype)


def use_rotation_tables() -> None:
    """Let Megatron's attention turn heads by ``PositionRotary``'s tables. Idempotent.

    It takes cosines and sines of the angles it is given, in every layer. What is not a table goes
    to its own function. For megatron-core 0.19.
    """
    module: Any = attention
    stock = module.apply_rotary_pos_emb
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def turned(heads: Tensor, table: Tensor, *rest: Any, config: Any, **more: Any) -> Tensor:
        if table.dim() != _TABLE_DIM:
            return stock(heads, table, *rest, config=config, **more)
        return turn(heads, table, config.rotary_interleaved, more.get("mscale", 1.0))

    module.apply_rotary_pos_emb = turned


def turn(heads: Tensor, table: Tensor, interleaved: bool, scale: float = 1.0) -> Tensor:
    """``heads`` [tokens, 1, heads, d] by ``table`` [tokens, 1, 1, 2, rotary d]."""
    if scale != 1:
        table = table * scale
    cos, sin = table.to(heads.dtype).unbind(-2)
    turning, rest = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    half = _rotate_half(turning, interleaved)
    return torch.cat((turning * cos + half * sin, rest), dim=-1)
