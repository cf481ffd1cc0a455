"""Changes to Megatron's modules at run time, each for one reason; all are called explicitly."""

import logging
import queue
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy

logger = logging.getLogger(__name__)


def collect_write_results_in_process() -> None:
    """Let checkpoint writers report through a queue of this process.

    Megatron starts a ``multiprocessing.Manager`` for it, a process that lives on when this one is
    killed. Our writers are threads, so a plain queue does. Idempotent. For megatron-core 0.19; not
    needed once ``get_write_results_queue`` may be given a queue.
    """
    module: Any = filesystem_async
    assert hasattr(module, "_results_queue"), "megatron-core has changed; see the docstring"
    if not isinstance(module._results_queue, queue.Queue):
        module._results_queue = queue.Queue()
        logger.debug("checkpoint writers report through a queue instead of a manager process")


def silence_async_strategy_notice() -> None:
    """Keep Megatron from advising a package (nvidia-resiliency-ext) at every run. Idempotent."""
    module: Any = torch_strategy
    module._logged_mcore_async_deprecation = True
