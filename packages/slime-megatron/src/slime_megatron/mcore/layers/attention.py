"""Core attention: packed, causal, grouped heads, context parallel.

Takes the place of Megatron's ``DotProductAttention`` through the layer spec. In 16 bits on a GPU,
``--attention-backend`` picks the kernels:

* ``auto``: FlashAttention-4 where it is installed and can (``flash``), else as ``fused``
* ``flash``: FlashAttention-4 where it can, else PyTorch's FlashAttention-2
* ``fused``: cuDNN's on packed sequences where TransformerEngine is installed (``packed_cudnn``);
  else on rectangles of sequences of like length (``blocks``), and where those do not fit (context
  parallelism, value heads of another size) PyTorch's FlashAttention-2
* ``unfused``, ``local``: one operation after the other, as everywhere else

Elsewhere sequences of like length share a padded rectangle of PyTorch's
``scaled_dot_product_attention``.

Under context parallelism keys and values are gathered over the ranks (their gradient is
reduce-scattered back) and each rank's rows attend to their prefixes.

Shapes: t local rows, h query heads, g key/value heads, d head size, e size of a value head (which
differs from d in multi-latent attention).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from slime_megatron.mcore.layers.flash import flash_attention
from slime_megatron.mcore.layers.kernels import Attend, Heads
from slime_megatron.mcore.layers.packed_cudnn import packed_cudnn
from slime_megatron.mcore.layers.packed_input import PackedInput
from slime_megatron.packing.spans import Padded, Rectangle, Varlen

_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
_CUDNN_HEAD = 128
_PLAIN = (AttnBackend.unfused, AttnBackend.local)


def _suits_cudnn(q: Tensor, v: Tensor) -> bool:
    return q.shape[-1] == v.shape[-1] <= _CUDNN_HEAD


def _has_fast_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


class CausalAttention(MegatronModule):
    """softmax(q k^T * scale) v under a causal mask, per packed sequence."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        *_: Any,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **__: Any,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type in (AttnMaskType.causal, AttnMaskType.padding_causal)
        assert config.window_size is None, "sliding windows are not supported"
        assert config.softmax_type == "vanilla", "attention sinks are not supported"
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self.cp_group = groups.cp
        self.cp_size: int = self.cp_group.size()
        self.backend: AttnBackend = config.attention_backend
        head = k_channels or config.kv_channels
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(head)
        if config.apply_query_key_layer_scaling:
            self.scale /= max(1, layer_number)

    def forward(
        self,
        query: Float[Tensor, "t b h d"],
        key: Float[Tensor, "t b g d"],
        value: Float[Tensor, "t b g e"],
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedInput | None = None,
        **_: Any,
    ) -> Float[Tensor, "t b he"]:
        """Attend; without a packed input the batch holds whole sequences of one length."""
        if packed_seq_params is None:
            assert self.cp_size == 1, "context parallelism needs a packed input"
            return self._batch(query, key, value)
        # Not [:, 0], whose gradient is written into zeros.
        q, k, v = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if self.cp_size > 1:
            k = gather_from_sequence_parallel_region(k.contiguous(), group=self.cp_group)
            v = gather_from_sequence_parallel_region(v.contiguous(), group=self.cp_group)
        out = self._packed(q, k, v, packed_seq_params)
        return out.reshape(out.shape[0], 1, -1)

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedInput) -> Tensor:
        if self.backend in _PLAIN:
            with sdpa_kernel(SDPBackend.MATH):
                return self._padded(q, k, v, packed.padded)
        if not _has_fast_kernels(q):
            return self._padded(q, k, v, packed.padded)
        kernel = self._of_other_packages(Heads.of(q, k, v))
        if kernel is not None:
            return self._spans(kernel, q, k, v, packed.varlen)
        if self.backend is not AttnBackend.flash and packed.blocks and _suits_cudnn(q, v):
            return packed.blocks.attend(q, k, v, self._cudnn)
        return self._spans(flash_attention_2, q, k, v, packed.varlen)

    def _of_other_packages(self, heads: Heads) -> Attend | None:
        """The first kernel for packed sequences that is allowed, installed and right."""
        kernel = None
        if self.backend is not AttnBackend.fused:
            kernel = flash_attention(heads)
        if kernel is None and self.backend is not AttnBackend.flash:
            kernel = packed_cudnn(heads)
        return kernel

    def _spans(self, kernel: Attend, q: Tensor, k: Tensor, v: Tensor, varlen: Varlen) -> Tensor:
        if varlen.keys is not None:
            k, v = varlen.keys.of(k), varlen.keys.of(v)
        return kernel(q, k, v, varlen, self.scale)

    def _cudnn(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Where cuDNN has no kernel for the shapes, the next in line."""
        with sdpa_kernel(_KERNELS, set_priority=True):
            return self._sdpa(q, k, v, None)

    def _batch(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = self._sdpa(q, k, v, None)
        return out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One kernel call on [spans, heads, rows, d]."""
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, padded: Padded) -> Tensor:
        outs = [self._rectangle(q, k, v, rectangle) for rectangle in padded.rectangles]
        rows = outs[0] if len(outs) == 1 else torch.cat(outs)
        return rows.index_select(0, padded.restore)

    def _rectangle(self, q: Tensor, k: Tensor, v: Tensor, rectangle: Rectangle) -> Tensor:
        def take(x: Tensor, rows: Tensor) -> Tensor:
            return x.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)

        queries, keys = rectangle.query_rows, rectangle.key_rows
        out = self._sdpa(take(q, queries), take(k, keys), take(v, keys), rectangle.mask)
        return out.transpose(1, 2).flatten(0, 1)


def flash_attention_2(q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> Tensor:
    """PyTorch's variable-length FlashAttention; it wants heads of one number and one size."""
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    value_size = v.shape[-1]
    if value_size != q.shape[-1]:
        v = functional.pad(v, (0, q.shape[-1] - value_size))
    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        varlen.cu_queries,
        varlen.cu_keys,
        varlen.max_queries,
        varlen.max_keys,
        scale=scale,
        window_size=(-1, 0),
    )
    assert isinstance(out, Tensor), "the normaliser was not asked for"
    return out[..., :value_size]
