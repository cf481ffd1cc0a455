"""Rotary position embedding by explicit positions: one row per packed token."""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from slime_megatron.mcore.packing import PackedInput


class PositionRotary(RotaryEmbedding):
    """Looks up the angles of the positions a packed input carries.

    Megatron's own module returns the angles of 0, 1, 2, ... and cuts them per sequence in every
    layer, which asks the device for the lengths each time. Here each packed row, of whichever
    sequence and whichever context-parallel chunk, gets its own angle once per microbatch.
    """

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
        """Angles of shape [tokens, 1, 1, head_dim]."""
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
        return angles[:, None, None, :]
