"""Prompts that are made up on the way, easy ones first."""

import random
from collections.abc import Mapping
from typing import Any

from slime_core import RolloutDataSourceWithBuffer, Sample

SEED = 0


class Curriculum(RolloutDataSourceWithBuffer):
    """Sums without a carry whose numbers grow with the iterations; no prompt file is read."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.random = random.Random(SEED)
        self.number = 0

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Unfinished groups first, the easiest of them; then new ones."""
        taken = self.easiest(num_samples)
        return taken + [self.make_group() for _ in range(num_samples - len(taken))]

    def easiest(self, num_samples: int) -> list[list[Sample]]:
        """Groups of the buffer by level."""
        self.buffer.sort(key=lambda group: group[0].metadata["level"])
        taken, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        return taken

    def make_group(self) -> list[Sample]:
        """One problem, asked as often as --n-samples-per-prompt says."""
        level = min(9, 1 + self.rollout_id)
        left, right = self.operands(level)
        self.number += 1
        return [
            Sample(
                group_index=self.number,
                prompt=[{"role": "user", "content": f"{left}+{right}=?"}],
                label=str(left + right),
                metadata={"level": level},
            )
            for _ in range(self.args.n_samples_per_prompt)
        ]

    def operands(self, level: int) -> tuple[int, int]:
        """Two numbers of two digits, whose tens and ones add up to ``level`` at most."""
        tens, ones = self.random.randint(2, max(2, level)), self.random.randint(0, level)
        left = 10 * self.random.randint(1, tens - 1) + self.random.randint(0, ones)
        return left, 10 * tens + ones - left

    def state_dict(self) -> dict[str, Any]:
        """Where the next problem comes from, and the buffer."""
        version, numbers, gauss = self.random.getstate()
        state = {"random": [version, list(numbers), gauss], "number": self.number}
        return super().state_dict() | state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        super().load_state_dict(state)
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.number = state["number"]
