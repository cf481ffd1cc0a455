"""Log-probabilities of target tokens and entropy, straight from hidden states.

The logits of all tokens need not exist. Rows are taken ``chunk_size`` at a time, in the forward and
again in the backward pass, so at most [chunk_size, vocab / tp] of them are alive: once, in the
model's precision, on a GPU; a few times in float32 on a CPU. With ``keep``, a GPU that has room for
twice as much keeps those of the forward pass, which saves a quarter of the products. The gradient
of the output weight is added up in float32. Each tensor-parallel rank holds a slice of the
vocabulary; maxima and sums are exchanged. Nothing waits for the device.

    x_j = <h, w_j> / T      log p = x_t - log sum_j e^x_j      H = log Z - sum_j e^x_j x_j / Z
    d log p / dx_j = [j = t] - p_j                             dH / dx_j = -p_j (log p_j + H)

With top-p the log-probability is that of nucleus sampling (Holtzman et al., arXiv 1904.09751), as
the engine drew the token: the most probable tokens whose probabilities, at this temperature, add
up to ``top_p`` are kept and share all the probability. Tokens as probable as the least of them are
kept too, for which of them an engine's sort takes is chance, and so is the target: engine and
trainer round differently, and a token that was drawn must not become impossible.

    N = {j : x_j >= theta} + {t},  theta = max {x : sum_{x_j >= x} p_j >= top_p}
    log p = x_t - log sum_{j in N} e^x_j      d log p / dx_j = [j = t] - [j in N] e^x_j / sum_N

The set is taken as given when going back. The entropy remains that of all tokens. ``theta`` is
searched among the numbers that the logits' type can hold, so it is exact, in as many passes over a
chunk as half that type's bits, and no rank sees another's logits.

Padding of the vocabulary takes no part: its columns are never computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from slime_megatron.iteration.passes import Entropy
from slime_megatron.mcore.weight_gradients import add_product


@dataclass(frozen=True)
class VocabSlice:
    """The part of the vocabulary this rank scores: tokens ``start`` to ``start + size - 1``."""

    start: int
    size: int
    group: Any
    """The ranks that hold the other parts; None if there are none."""

    @classmethod
    def of(cls, rows: int, vocab_size: int) -> "VocabSlice":
        """The slice of an output layer with ``rows`` rows on this tensor-parallel rank."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        alone = parallel_state.get_tensor_model_parallel_world_size() == 1
        group = None if alone else parallel_state.get_tensor_model_parallel_group()
        return cls(rank * rows, max(0, min(rows, vocab_size - rank * rows)), group)


@dataclass(frozen=True)
class Scoring:
    """What to compute at the end of the model for one microbatch."""

    rows: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    vocab_size: int
    """Without padding."""
    temperature: float = 1.0
    chunk_size: int = 1024
    entropy: Entropy = Entropy.NONE
    top_p: float = 1.0
    """Log-probabilities are those of nucleus sampling; 1: of all tokens."""
    keep: bool = False
    """Keep the logits for going back where there is memory for it; no bit depends on it."""

    @property
    def scale(self) -> float:
        """What logits are multiplied by: everywhere so, that equal logits stay equal."""
        return 1 / self.temperature


def score(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    context: Scoring,
    config: Any,
    **_: Any,
) -> Float[Tensor, "two scored"]:
    """Megatron's ``output_processor``: log-probabilities in row 0, entropies in row 1.

    ``hidden_states`` is [rows, 1, hidden]; under sequence parallelism each tensor-parallel rank
    holds a part of the rows.
    """
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states).squeeze(1)
        picked = hidden.index_select(0, context.rows)
    else:
        picked = hidden_states.squeeze(1).index_select(0, context.rows)
        picked = copy_to_tensor_model_parallel_region(picked)
    vocab = VocabSlice.of(weight.shape[0], context.vocab_size)
    return target_log_probs(picked, weight, context, vocab)


def target_log_probs(
    hidden: Float[Tensor, "scored hidden"],
    weight: Float[Tensor, "padded hidden"],
    scoring: Scoring,
    vocab: VocabSlice,
) -> Float[Tensor, "two scored"]:
    """Log-probabilities of ``scoring.targets`` in row 0, entropies in row 1, in float32.

    ``hidden`` holds the scored rows only. Its gradient on each rank of ``vocab.group`` is that of
    the rank's own slice: the caller adds them. Needs no state of Megatron's.
    """
    keep = scoring.keep and torch.is_grad_enabled() and hidden.is_cuda
    room = _Room(hidden, weight[: vocab.size], scoring, whole=keep)
    return TargetLogProbs.apply(hidden, weight, scoring, vocab, room)  # type: ignore[no-any-return]


class TargetLogProbs(torch.autograd.Function):
    """Chunked log-probability and entropy; recomputes the logits when going back."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        scoring: Scoring,
        vocab: VocabSlice,
        room: "_Room",
    ) -> Tensor:
        """Score every row of ``hidden``."""
        number = precision(hidden.dtype)
        out = torch.zeros(2, hidden.shape[0], dtype=number, device=hidden.device)
        normaliser = torch.zeros_like(out[0])
        nucleus = out.new_zeros(_NUCLEUS, len(hidden)) if scoring.top_p < 1 else None
        column = _column(scoring.targets, vocab)
        for at in room.chunks:
            logits = room.logits(at)
            sums = _whole_sums(logits, column[at], vocab)
            out[:, at], normaliser[at] = _from_sums(sums, scoring)
            if nucleus is not None:
                out[0, at], nucleus[:, at] = _restrict(logits, sums, scoring, vocab)
        ctx.save_for_backward(hidden, weight, column, normaliser, out, nucleus)
        ctx.scoring, ctx.vocab = scoring, vocab
        ctx.room = room if room.whole else None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of this rank's slice; hidden gradients are partial sums over the ranks."""
        hidden, weight, column, normaliser, out, nucleus = ctx.saved_tensors
        scoring, live = ctx.scoring, weight[: ctx.vocab.size]
        room, ctx.room = ctx.room or _Room(hidden, live, scoring), None
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if to_weight else None
        slopes = _slopes(grad, normaliser, out[1], nucleus, scoring)
        d_live = None if d_weight is None else d_weight[: ctx.vocab.size]
        _multiply_back(room, column, slopes, d_hidden, d_live)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None


def precision(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over the vocabulary are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Slopes:
    """What each row's gradient is made of, over the temperature already.

    d_j = e^(x_j - normaliser) ([logit_j >= threshold] drop - spread (x_j - normaliser + entropy))
          + [j = target] rise
    """

    normaliser: Float[Tensor, " rows"]
    drop: Float[Tensor, " rows"]
    rise: Float[Tensor, " rows"]
    spread: Float[Tensor, " rows"] | None
    """None: the entropy has no gradient."""
    entropy: Float[Tensor, " rows"]
    threshold: Float[Tensor, " rows"] | None
    """Of logits before the temperature; None: all are above it."""

    def chunk(self, at: slice) -> "Slopes":
        """Those of some rows."""
        return Slopes(
            self.normaliser[at],
            self.drop[at],
            self.rise[at],
            None if self.spread is None else self.spread[at],
            self.entropy[at],
            None if self.threshold is None else self.threshold[at],
        )


class LogitRows(Protocol):
    """This rank's slice of some rows of logits."""

    @property
    def dtype(self) -> torch.dtype:
        """The type the logits came out in."""
        ...

    def sums(self, column: Int[Tensor, " rows"]) -> Float[Tensor, "four rows"]:
        """Of each row: largest, total, mean, target.

        The largest x; the sums of e^(x - largest) and of e^(x - largest) (x - largest); the logit
        in ``column`` before the temperature, 0 where ``column`` is -1.
        """
        ...

    def masses(
        self, thresholds: Float[Tensor, "n rows"], largest: Float[Tensor, " rows"]
    ) -> Float[Tensor, "n rows"]:
        """Sums of e^(x - largest) over the logits that are not below each threshold.

        Comes after ``sums``, whose ``largest`` is given.
        """
        ...

    def gradient(self, column: Int[Tensor, " rows"], slopes: Slopes) -> Float[Tensor, "rows vocab"]:
        """d(loss) / d(logits); the logits may be overwritten."""
        ...


class TensorRows:
    """``LogitRows`` by tensor operations, for a CPU and for double precision."""

    def __init__(
        self,
        logits: Float[Tensor, "rows vocab"],
        scratch: Float[Tensor, "rows vocab"],
        scoring: Scoring,
    ) -> None:
        self.dtype = logits.dtype
        self._logits, self._scratch, self._scoring = logits, scratch, scoring
        self._spare = scratch  # until the first sums

    def _scaled(self) -> Tensor:
        """Logits over the temperature, free to be overwritten."""
        keep = self._scoring.top_p < 1
        scaled = self._logits.to(precision(self.dtype), copy=keep)
        return scaled if self._scoring.temperature == 1 else scaled.mul_(self._scoring.scale)

    def sums(self, column: Tensor) -> Tensor:
        """See ``LogitRows``."""
        number = precision(self.dtype)
        if self._logits.shape[-1] == 0:
            none = torch.zeros(4, len(column), dtype=number, device=column.device)
            none[0] = -torch.inf
            return none
        picked = self._logits.gather(-1, column.clamp(min=0)[:, None])[:, 0].to(number)
        picked = torch.where(column >= 0, picked, 0.0)
        scaled = self._scaled()
        largest = scaled.amax(-1)
        shifted = scaled.sub_(largest[:, None])
        powers = torch.exp(shifted, out=self._scratch)
        total = powers.sum(-1)
        if self._scoring.entropy is Entropy.NONE:
            mean = torch.zeros_like(total)
        else:
            mean = shifted.mul_(powers).sum(-1)
        self._spare = shifted
        return torch.stack([largest, total, mean, picked])

    def masses(self, thresholds: Tensor, largest: Tensor) -> Tensor:
        """See ``LogitRows``."""
        powers, nothing = self._scratch, largest.new_zeros(())
        return torch.stack(
            [
                torch.where(self._logits >= t[:, None], powers, nothing, out=self._spare).sum(-1)
                for t in thresholds
            ]
        )

    def gradient(self, column: Tensor, slopes: Slopes) -> Tensor:
        """See ``LogitRows``."""
        log_p = self._scaled().sub_(slopes.normaliser[:, None])
        factor = slopes.drop[:, None]
        if slopes.threshold is not None:
            factor = torch.where(self._logits >= slopes.threshold[:, None], factor, 0.0)
        if slopes.spread is not None:
            surprise = torch.add(log_p, slopes.entropy[:, None], out=self._scratch)
            factor = surprise.mul_(-slopes.spread[:, None]).add_(factor)
        gradient = log_p.exp_().mul_(factor)
        if gradient.shape[-1]:
            rise = torch.where(column >= 0, slopes.rise, 0.0)
            gradient.scatter_add_(1, column.clamp(min=0)[:, None], rise[:, None])
        return gradient.to(self.dtype)


class _Room:
    """Memory for the logits of one chunk, used again for the next, or for those of all rows.

    Fresh pages, which the system has to clear, would cost a CPU about as much as the products.
    """

    def __init__(
        self, hidden: Tensor, live: Tensor, scoring: Scoring, *, whole: bool = False
    ) -> None:
        self.hidden, self.live, self.scoring = hidden.detach(), live.detach(), scoring
        self.chunks = _chunks(len(hidden), scoring.chunk_size)
        self._kernels = hidden.is_cuda and hidden.dtype != torch.float64 and len(live) > 0
        self.whole = (
            whole
            and self._kernels
            and _spare_bytes(hidden.device) > 2 * hidden.element_size() * (len(hidden) * len(live))
        )
        shape = (len(hidden) if self.whole else min(len(hidden), scoring.chunk_size), len(live))
        self._logits = self.hidden.new_empty(shape)
        if not self._kernels:
            self._scratch = self.hidden.new_empty(shape, dtype=precision(hidden.dtype))

    def logits(self, at: slice) -> LogitRows:
        """Those of some rows, in the place of those before or in their own."""
        logits = self._logits[at if self.whole else slice(at.stop - at.start)]
        torch.mm(self.hidden[at], self.live.T, out=logits)
        return self.rows(logits)

    def again(self) -> Iterator[tuple[slice, LogitRows]]:
        """All rows, for going back: as they were kept, or computed once more."""
        if self.whole:
            for at in _chunks(len(self.hidden), _ROWS_BACK):
                yield at, self.rows(self._logits[at])
        else:
            for at in self.chunks:
                yield at, self.logits(at)

    def rows(self, logits: Tensor) -> LogitRows:
        """The implementation for the device."""
        if self._kernels:
            from slime_megatron.mcore.logprob_kernels import KernelRows

            return KernelRows(logits, self.scoring.scale)
        return TensorRows(logits, self._scratch[: len(logits)], self.scoring)


_ROWS_BACK = 16384
"""Of kept logits at once: the more, the less often the weight's gradient is read and written."""


def _spare_bytes(device: torch.device) -> int:
    """Of a GPU's memory: what is free and what this process holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _column(targets: Tensor, vocab: VocabSlice) -> Tensor:
    """Column of each target in this slice; -1 if it is not there."""
    column = targets - vocab.start
    return torch.where((column >= 0) & (column < vocab.size), column, -1)


@dataclass(frozen=True)
class _Sums:
    """Of rows over the whole vocabulary; ``total`` and ``mean`` relative to ``largest``."""

    own_largest: Tensor
    """In this rank's slice."""
    largest: Tensor
    total: Tensor
    mean: Tensor
    target: Tensor
    """Its logit before the temperature."""


def _whole_sums(logits: LogitRows, column: Tensor, vocab: VocabSlice) -> _Sums:
    own, total, mean, target = logits.sums(column).unbind()
    if vocab.group is None:
        return _Sums(own, own, total, mean, target)
    largest = own.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=vocab.group)
    # A rank that holds only padding has -inf, which must not meet its zeros.
    shift = (own - largest).clamp(min=torch.finfo(own.dtype).min)
    scale = shift.exp()
    sums = torch.stack([scale * total, scale * (mean + shift * total), target])
    dist.all_reduce(sums, group=vocab.group)
    return _Sums(own, largest, *sums.unbind())


def _from_sums(sums: _Sums, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """([log-probability, entropy], log normaliser) over all tokens."""
    log_total = sums.total.log()
    log_prob = sums.target * scoring.scale - sums.largest - log_total
    if scoring.entropy is Entropy.NONE:
        entropy = torch.zeros_like(log_total)
    else:
        entropy = log_total - sums.mean / sums.total
    return torch.stack([log_prob, entropy]), sums.largest + log_total


_NUCLEUS = 3
"""How many numbers going back needs of each row's nucleus."""


def _restrict(
    logits: LogitRows, sums: _Sums, scoring: Scoring, vocab: VocabSlice
) -> tuple[Tensor, Tensor]:
    """Log-probability within the nucleus; [threshold, 1 / its probability, rise] of it.

    ``rise`` is d log p / d x_t where the rest of the gradient leaves out all below the threshold.
    """
    scale = (sums.own_largest - sums.largest).exp()

    def masses(thresholds: Tensor) -> Tensor:
        found = logits.masses(thresholds, sums.own_largest) * scale
        if vocab.group is not None:
            dist.all_reduce(found, group=vocab.group)
        return found

    threshold = _threshold(masses, scoring.top_p * sums.total, logits.dtype)
    log_power = sums.target * scoring.scale - sums.largest
    outside = sums.target < threshold
    mass = masses(threshold[None])[0] + torch.where(outside, log_power.exp(), 0.0)
    log_prob = log_power - mass.log()
    rise = 1 - torch.where(outside, log_prob.exp(), 0.0)
    return log_prob, torch.stack([threshold.to(mass.dtype), sums.total / mass, rise])


_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _threshold(
    masses: Callable[[Tensor], Tensor], goal: Float[Tensor, " rows"], dtype: torch.dtype
) -> Float[Tensor, " rows"]:
    """The largest number of type ``dtype`` at which ``masses`` is at least ``goal``.

    A float's bits, read as an integer, are in the order of the floats, once those of negative
    numbers are turned round. Each pass tries three integers and leaves a quarter of the range.
    """
    integer = _BITS[dtype]
    most = torch.iinfo(integer).max

    def turned(bits: Tensor) -> Tensor:
        return bits ^ ((bits >> (torch.iinfo(integer).bits - 1)) & most)

    def between(low: Tensor, high: Tensor) -> Tensor:
        return (low & high) + ((low ^ high) >> 1)  # of the sum, but without its overflow

    high = turned(torch.full(goal.shape, torch.inf, dtype=dtype, device=goal.device).view(integer))
    low = -high - 1  # minus infinity
    for _ in range(torch.iinfo(integer).bits // 2):
        middle = between(low, high)
        tried = torch.stack([between(low, middle), middle, between(middle, high)])
        reached = (masses(turned(tried).view(dtype)) >= goal).sum(0)
        edges = torch.cat([low[None], tried, high[None]])
        low, high = (edges.gather(0, (reached + i)[None])[0] for i in range(2))
    return turned(low).view(dtype)


def _slopes(
    grad: Tensor, normaliser: Tensor, entropy: Tensor, nucleus: Tensor | None, scoring: Scoring
) -> Slopes:
    scaled = (grad * scoring.scale).contiguous()
    drop, rise, threshold = -scaled[0], scaled[0], None
    if nucleus is not None:
        threshold = nucleus[0]
        drop, rise = drop * nucleus[1], rise * nucleus[2]
    spread = scaled[1] if scoring.entropy is Entropy.TRAIN else None
    return Slopes(normaliser, drop, rise, spread, entropy, threshold)


def _multiply_back(
    room: _Room, column: Tensor, slopes: Slopes, d_hidden: Tensor | None, d_live: Tensor | None
) -> None:
    """Write the gradient of the hidden states, add to that of the weight."""
    for at, logits in room.again():
        d_logits = logits.gradient(column[at], slopes.chunk(at))
        if d_hidden is not None:
            torch.mm(d_logits, room.live, out=d_hidden[at])
        if d_live is not None:
            add_product(d_live, d_logits.T, room.hidden[at])
