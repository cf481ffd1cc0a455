"""Small tensors of the host on their way to a device."""

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; neither it nor what follows waits for what the device has to do before.

    From pageable memory a copy begins when its turn comes, and the host waits until then.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
