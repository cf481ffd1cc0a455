"""Generation without an engine, a reward and a source of prompts for it."""

import asyncio
from collections.abc import Callable, Sequence

from slime_core.data.prompts import Prompt
from slime_core.data.stream import PromptStream
from slime_core.errors import EngineError
from slime_core.types import Sample, Status


class Desk:
    """Answers after ``delay(sample)`` ticks; aborting ends every answer under way."""

    def __init__(self, delay: Callable[[Sample], int] = lambda sample: 0) -> None:
        self._delay = delay
        self._aborted = False
        self.dead = False
        self.most_at_once = self._at_once = 0

    async def __call__(self, sample: Sample) -> Sample:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        for tick in range(self._delay(sample)):
            if self._aborted:
                sample.status = Status.ABORTED
                break
            await asyncio.sleep(0)
            if tick == 0:
                self._write(sample, 5)
        else:
            self._write(sample, 9)
            sample.status = Status.COMPLETED
        self._at_once -= 1
        return sample

    def _write(self, sample: Sample, token: int) -> None:
        sample.tokens = [*sample.tokens, token]
        sample.response_length += 1

    def check_alive(self) -> None:
        if self.dead:
            raise EngineError("engine_0 ended with exit code 9")

    async def abort(self) -> None:
        self._aborted = True


async def index_reward(samples: Sequence[Sample]) -> None:
    for sample in samples:
        sample.reward = float(sample.index or 0)


def make_source(num_prompts: int = 100, n: int = 2) -> PromptStream:
    prompts = [Prompt(prompt="p", tokens=(1, 2)) for _ in range(num_prompts)]
    return PromptStream(prompts, n, shuffle=False, seed=0)
