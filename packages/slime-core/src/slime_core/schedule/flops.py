"""How long a sequence takes, relative to others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """Multiply-adds of a forward pass by sequence length, summed over layers.

    The backward pass costs twice as much whatever the length, so only ratios matter.
    """

    per_token: float
    """Projections, feed-forward and vocabulary: in proportion to L."""
    per_square: float
    """Causal attention to everything before: 2 matrix products over L**2 / 2 pairs."""
    per_window_square: float = 0.0
    """The same of layers that see only the last ``window`` tokens, had they no window."""
    window: int = 0

    def of(self, length: int) -> float:
        """Cost of one sequence in units of one token without attention."""
        squares = self.per_square * length * length
        beyond = max(0, length - self.window)
        squares += self.per_window_square * (length * length - beyond * beyond)
        return length + squares / self.per_token


USUAL = ModelCost(per_token=12.0 * 4096, per_square=1.0)
"""A dense layer of hidden size h = 4096: 12 h**2 a token, h a squared token."""


def workload(lengths: Sequence[int], cost: ModelCost = USUAL) -> list[float]:
    """Cost of a forward and backward pass in units of one token without attention.

        w(L) = L + (s L**2 + s_w (L**2 - max(0, L - W)**2)) / t

    with t, s, s_w, W from ``cost``.
    Source: Korthikanti et al., arXiv:2205.05198, appendix A, which counts 24 h**2 L floating-point
    operations in the projections of a layer and 4 h L**2 in its attention; half of the latter are
    causally masked.
    """
    return [cost.of(length) for length in lengths]


def model_cost(hf_config: Mapping[str, Any]) -> ModelCost:
    """Costs of the model that a config.json describes; ``USUAL`` where it says too little.

    Reads grouped-query heads, routed and shared experts, layers that are dense in between,
    sliding windows, and layers of linear attention, which have no quadratic part.
    """
    config: Mapping[str, Any] = hf_config.get("text_config") or hf_config
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    if not all(config.get(name) for name in needed):
        return USUAL
    hidden, layers, heads = (int(config[name]) for name in needed)
    width = int(config.get("head_dim") or hidden // heads)
    groups = int(config.get("num_key_value_heads") or heads)
    projections = hidden * width * 2 * (heads + groups)
    vocabulary = hidden * int(config.get("vocab_size") or 0)
    kinds: list[str] = config.get("layer_types") or ["full_attention"] * layers
    windowed = kinds.count("sliding_attention") if config.get("sliding_window") else 0
    full = len(kinds) - kinds.count("linear_attention") - windowed
    return ModelCost(
        per_token=layers * projections + _feed_forward(config, hidden, layers) + vocabulary,
        per_square=float(full * heads * width),
        per_window_square=float(windowed * heads * width),
        window=int(config["sliding_window"]) if windowed else 0,
    )


def _feed_forward(config: Mapping[str, Any], hidden: int, layers: int) -> float:
    """Multiply-adds a token of all gated feed-forward blocks: 3 matrices each."""
    dense = int(config.get("intermediate_size") or 4 * hidden)
    active = int(config.get("num_experts_per_tok") or 0)
    if not active:
        return 3.0 * hidden * dense * layers
    expert = int(config.get("moe_intermediate_size") or dense)
    shared = int(config.get("shared_expert_intermediate_size") or 0)
    shared += int(config.get("n_shared_experts") or 0) * expert
    num_dense = min(layers, int(config.get("first_k_dense_replace") or 0))
    routed = 3.0 * hidden * (active * expert + shared) * (layers - num_dense)
    return routed + 3.0 * hidden * dense * num_dense
