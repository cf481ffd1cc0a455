"""Hidden states, a weight and targets to score, and what plain log-softmax makes of them."""

from typing import Any

import torch

VOCAB, HIDDEN, ROWS = 37, 6, 11


def kept(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Sort and add up until top_p is reached; all as probable as the last one, too."""
    ordered = probs.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = torch.where(before < top_p, ordered, 1.0).amin(-1, keepdim=True)
    return probs >= least


def dense(hidden: Any, weight: Any, targets: Any, temperature: float, top_p: float = 1.0) -> Any:
    return dense_of(hidden @ weight[:VOCAB].T, targets, temperature, top_p)


def dense_of(logits: Any, targets: Any, temperature: float, top_p: float) -> Any:
    """Log-probabilities and entropies from whole logits."""
    scores = (logits / temperature).log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    if top_p < 1:
        nucleus = kept(scores.detach().exp(), top_p).scatter(-1, targets[:, None], True)
        scores = scores.masked_fill(~nucleus, -torch.inf).log_softmax(-1)
    return torch.stack([scores.gather(-1, targets[:, None])[:, 0], entropy])


def product(module: Any, hidden: Any, weight: Any, targets: Any, **given: Any) -> Any:
    """The whole vocabulary on this rank."""
    size = given.pop("vocab_size", VOCAB)
    given.setdefault("entropy", module.Entropy.TRAIN)
    scoring = module.Scoring(rows=torch.arange(0), targets=targets, vocab_size=size, **given)
    return module.target_log_probs(hidden, weight, scoring, module.VocabSlice(0, size, None))


def load() -> Any:
    """The module, and with it Megatron, which only the processes of ranks import."""
    from slime_megatron.mcore.logprobs import target_log_probs

    return target_log_probs


def example(padded: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(padded, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCAB, (ROWS,), generator=generator)
