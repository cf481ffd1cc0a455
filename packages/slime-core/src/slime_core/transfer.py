"""Small tensors on their way between the host and a device."""

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor


@overload
def sent(x: Tensor, device: torch.device) -> Tensor: ...
@overload
def sent(x: Tensor | None, device: torch.device) -> Tensor | None: ...
def sent(x: Tensor | None, device: torch.device) -> Tensor | None:
    """``x`` on ``device``; neither it nor what follows waits for what the device has to do before.

    From pageable memory a copy begins when its turn comes, and the host waits until then. What is
    not there stays so.
    """
    if x is None:
        return None
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def fetched(x: Tensor) -> Callable[[], Tensor]:
    """``x`` on the host once called, which waits for nothing that the device is given later."""
    if x.device.type == "cpu":
        return lambda: x
    here = x.to("cpu", non_blocking=True)
    arrived = torch.accelerator.current_stream(x.device).record_event()

    def wait() -> Tensor:
        arrived.synchronize()
        return here

    return wait
