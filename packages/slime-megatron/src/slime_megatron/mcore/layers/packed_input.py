"""The packed microbatch as Megatron's layers see it."""

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from slime_megatron.packing.blocks import Blocks
from slime_megatron.packing.spans import Padded, Spans, Varlen


@dataclass
class PackedInput(PackedSeqParams):
    """Travels through Megatron's layers in the place of ``PackedSeqParams``.

    ``qkv_format`` stays ``sbhd`` with batch 1, so that Megatron leaves positions and lengths to our
    rotary and attention modules; ``thd`` would cut the rotary angles per sequence in every layer,
    with a host synchronisation each. Made per microbatch by ``forward``, shared by all layers.
    """

    qkv_format: str = "sbhd"
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Position of each local row in its own sequence."""
    spans: Spans = field(default_factory=lambda: Spans((), (), in_order=True))
    _blocks: Blocks | None = None
    _padded: Padded | None = None
    _varlen: Varlen | None = None

    @property
    def blocks(self) -> Blocks | None:
        """Whole sequences as rectangles; None where a rank has parts of them."""
        if self._blocks is None and self.spans.in_order:
            lengths = [rows.numel() for rows in self.spans.queries]
            self._blocks = Blocks.of(lengths, self.positions.device)
        return self._blocks

    @property
    def padded(self) -> Padded:
        """The spans as rectangles, on the device of ``positions``."""
        if self._padded is None:
            self._padded = Padded.of(self.spans, self.positions.device)
        return self._padded

    @property
    def varlen(self) -> Varlen:
        """The spans end to end, on the device of ``positions``."""
        if self._varlen is None:
            self._varlen = Varlen.of(self.spans, self.positions.device)
        return self._varlen
