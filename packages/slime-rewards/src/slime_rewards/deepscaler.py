r"""The final answer of a reasoning model: ``--rm-type deepscaler``."""

from slime_rewards import math
from slime_rewards.boxed import last_boxed

_MARKERS = ("</think>", "###Response")


def final_answer(response: str) -> str | None:
    r"""The last box behind the thoughts, as ``\boxed{...}``; None without thoughts or box.

    What counts as the end of thought is ``</think>``, or ``###Response`` where there is none.
    Source: DeepScaleR's reward (agentica-org, 2025).
    """
    marker = next((m for m in _MARKERS if m in response), None)
    if marker is None:
        return None
    boxed = last_boxed(response.rpartition(marker)[2])
    return None if boxed is None else f"\\boxed{{{boxed}}}"


def grade(response: str, label: str) -> float:
    """1 where the final answer is right, else 0; may take for ever."""
    answer = final_answer(response)
    return 0.0 if answer is None else math.grade(answer, label)
