"""Small tensors of a device on their way to the host."""

from collections.abc import Callable

import torch
from torch import Tensor


def fetched(x: Tensor) -> Callable[[], Tensor]:
    """``x`` on the host once called, which waits for nothing that the device is given later."""
    if not x.is_cuda:
        return lambda: x
    here = x.to("cpu", non_blocking=True)
    with torch.cuda.device(x.device):
        arrived = torch.cuda.current_stream().record_event()

    def wait() -> Tensor:
        arrived.synchronize()
        return here

    return wait
