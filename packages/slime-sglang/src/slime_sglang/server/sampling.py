"""The same tokens for the same seeds on a CPU, whatever else is in the batch.

SGLang's seeded sampling needs --enable-deterministic-inference, whose kernels are for CUDA. On a
CPU two things are missing: the seeds have to reach the sampler, whose hash is a CUDA kernel, and
a row of a matrix product has to come out alike in batches of any size. PyTorch's products on a
CPU take different paths for a few rows and are alike from ``_ROWS`` rows on, so smaller batches
are filled up. And a request that limits the choice, such as the greedy one of a health check, may
not change how the others in its batch are sampled.
"""

import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from slime_core.splitmix import GOLDEN, mix
from torch import Tensor

_ROWS = 16


def pick_tokens(
    logprobs: Float[Tensor, "rows vocab"],
    seed: Int[Tensor, " rows"],
    positions: Int[Tensor, " rows"],
) -> Int[Tensor, "rows 1"]:
    """Sample each row by the Gumbel trick, with noise hashed from its seed and position.

    argmax_v  log p_v - log(-log u_v),   u_v = hash(seed, position, v) in (0, 1)
    """
    columns = torch.arange(logprobs.shape[1])
    rows = mix(seed.long() + mix(positions.long() * GOLDEN))
    bits = mix(rows[:, None] + columns * GOLDEN)
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
    noise = uniform.log_().neg_().log_().neg_()
    return (noise + logprobs.double()).argmax(dim=1, keepdim=True)


def pick_among(
    probs: Float[Tensor, "rows vocab"],
    top_ks: Int[Tensor, " rows"],
    top_ps: Float[Tensor, " rows"],
    min_ps: Float[Tensor, " rows"],
    need_min_p_sampling: bool,
    sampling_seed: Int[Tensor, " rows"],
    positions: Int[Tensor, " rows"],
) -> Int[Tensor, " rows"]:
    """Sample each row among its likeliest tokens; one that may choose any does as ``pick_tokens``.

    The noise belongs to a token, not to its rank: SGLang's own function gives a seed other tokens
    as soon as any request of the batch, or one that was in it, has a limit.
    """
    ranked, tokens = probs.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked
    out = torch.arange(probs.shape[-1]) >= top_ks[:, None]
    out |= (before > top_ps[:, None]) & (top_ps < 1.0)[:, None]
    if need_min_p_sampling:
        out |= ranked < ranked[:, :1] * min_ps[:, None]
    allowed = torch.zeros_like(probs).scatter_(1, tokens, ranked.masked_fill(out, 0.0))
    return pick_tokens(allowed.log(), sampling_seed, positions).view(-1).to(torch.int32)


def _with_seeds(info: Any, _cls: Any, batch: Any, _vocab_size: int) -> Any:
    if info.sampling_seed is None:
        seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
        drawn = [secrets.randbits(62) if seed is None else int(seed) for seed in seeds]
        info.sampling_seed = torch.tensor(drawn, dtype=torch.int64)
    return info


def _padded(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    rows = x.shape[0]
    if x.dim() != 2 or rows >= _ROWS:
        return product(x)
    return product(F.pad(x, (0, 0, 0, _ROWS - rows)))[:rows]


def _linear(
    original: Callable[..., Tensor], method: Any, layer: Any, x: Tensor, bias: Tensor | None = None
) -> Tensor:
    return _padded(x, lambda rows: original(method, layer, rows, bias))


def _head(
    original: Callable[..., Tensor],
    processor: Any,
    hidden_states: Tensor,
    lm_head: Any,
    embedding_bias: Tensor | None = None,
) -> Tensor:
    return _padded(hidden_states, lambda rows: original(processor, rows, lm_head, embedding_bias))


AFTER: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch": _with_seeds}
)
AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply": _linear,
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head": _head,
    }
)
REPLACE: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "sglang.srt.layers.sampler.multinomial_with_seed": pick_tokens,
        "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch": pick_among,
    }
)
"""SGLang 0.5.17's functions and what stands in for them on a CPU."""
