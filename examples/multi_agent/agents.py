"""Two roles of one model: a solver proposes, a checker judges, the solver may try again."""

import re
from typing import Any

from slime_core.types import Sample
from slime_sglang import generate_single

_BOXED = re.compile(r"\\boxed\{(.*?)\}")


def boxed(text: str) -> str | None:
    """What stands in the last box; None if there is none."""
    found = _BOXED.findall(text)
    return found[-1] if found else None


def check_of(question: str, answer: str | None) -> str:
    """What the checker is asked."""
    return f"{question.removesuffix('?')}{answer}?"


async def custom_generate(args: Any, sample: Sample, sampling_params: Any) -> Sample | list[Sample]:
    """Solve, check, and try again at most ``args.max_turns`` times.

    Each role has a conversation of its own. Both become segments of one execution: they share
    its ``rollout_id`` and the reward of the team, and each trains on what its role said.
    """
    question = sample.prompt[0]["content"]
    solving: Any = [{"role": "user", "content": question}]
    agreed = False
    for _ in range(args.max_turns):
        proposal = await generate_single(solving)
        asked = check_of(question, boxed(proposal))
        verdict = await generate_single([{"role": "user", "content": asked}])
        agreed = verdict.strip() == "yes"
        solving.append({"role": "assistant", "content": proposal})
        if agreed:
            break
        solving.append({"role": "user", "content": "no"})
    sample.reward = float(boxed(proposal) == sample.label)
    sample.metadata["agreed"] = agreed
    sample.response = proposal
    return sample
