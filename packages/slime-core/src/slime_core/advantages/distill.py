"""On-policy distillation: what a teacher thinks of the policy's own tokens."""

from jaxtyping import Float
from torch import Tensor


def distilled(
    advantages: Float[Tensor, " tokens"],
    log_probs: Float[Tensor, " tokens"],
    teacher_log_probs: Float[Tensor, " tokens"],
    coefficient: float,
) -> Float[Tensor, " tokens"]:
    """Advantages less the log-ratio of policy to teacher.

        A_t <- A_t - coefficient (log p(y_t) - log p_teacher(y_t))

    In expectation over the policy's tokens this lowers KL(policy || teacher), one token at a time.
    Source: policy gradient of the reverse KL, MiniLLM, arXiv:2306.08543; the form without later
    tokens: K. Lu, On-Policy Distillation, Thinking Machines Lab, 2025.
    """
    return advantages - coefficient * (log_probs - teacher_log_probs)
