"""Where logits are computed, chunk by chunk: memory for one chunk, or for all rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from slime_megatron.mcore.logprobs.logits import LogitRows, precision
from slime_megatron.mcore.logprobs.scoring import Scoring
from slime_megatron.mcore.logprobs.tensor_rows import TensorRows

_ROWS_BACK = 16384
"""Of kept logits at once: the more, the less often the weight's gradient is read and written."""


class LogitMemory:
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
            from slime_megatron.mcore.logprobs.kernel_rows import KernelRows

            return KernelRows(logits, self.scoring.scale)
        return TensorRows(logits, self._scratch[: len(logits)], self.scoring)


def _spare_bytes(device: torch.device) -> int:
    """Of a GPU's memory: what is free and what this process holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
