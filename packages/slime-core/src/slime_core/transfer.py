"""Small tensors of the host on their way to a device."""

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
