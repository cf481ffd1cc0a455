"""Changes to Megatron's modules at run time, each for one reason; all are called explicitly."""

import logging
import queue
from collections.abc import Sequence
from functools import wraps
from typing import Any, cast

import torch
from megatron.core import optimizer, utils
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer import multi_latent_attention
from megatron.core.utils import local_multi_tensor_l2_norm, local_multi_tensor_scale
from torch import Tensor

logger = logging.getLogger(__name__)

_lists: Any = torch
"""What torch does to lists of tensors, without exporting it."""


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


def know_no_transformer_engine() -> None:
    """Answer later questions as while Megatron was imported, without importing it. Idempotent.

    Megatron asks for the version of TransformerEngine when it makes a configuration, and imports
    the package each time.
    """
    module: Any = utils
    module._te_version = module.PkgVersion("0.0.0")  # for those who have the function already
    module.get_te_version = lambda: module._te_version


def silence_async_strategy_notice() -> None:
    """Keep Megatron from advising a package (nvidia-resiliency-ext) at every run. Idempotent."""
    module: Any = torch_strategy
    module._logged_mcore_async_deprecation = True


def exchange_uneven_rows_by_padding() -> None:
    """Let ranks with different numbers of rows gather and reduce-scatter them over gloo.

    As the ranks that share experts do, each with the tokens that were sent to it. NCCL can, gloo
    wants equal shapes: pad, exchange, cut. Idempotent. For the CPU, and megatron-core 0.19.
    """
    module: Any = mappings
    gather, scatter = module._gather_along_first_dim, module._reduce_scatter_along_first_dim
    if hasattr(gather, "__wrapped__"):
        return

    @wraps(gather)
    def padded_gather(
        x: Tensor,
        group: Any,
        output_split_sizes: Sequence[int] | None = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(x, group, output_split_sizes, *rest, **more)
        sizes = [int(n) for n in output_split_sizes]
        parts = gather(_padded(x, max(sizes)), group).chunk(len(sizes))
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @wraps(scatter)
    def padded_scatter(
        x: Tensor,
        group: Any,
        input_split_sizes: Sequence[int] | None = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        if input_split_sizes is None or group.size() == 1:
            return scatter(x, group, input_split_sizes, *rest, **more)
        sizes = [int(n) for n in input_split_sizes]
        parts = torch.cat([_padded(part, max(sizes)) for part in x.split(sizes)])
        return scatter(parts, group)[: sizes[group.rank()]]

    module._gather_along_first_dim = padded_gather
    module._reduce_scatter_along_first_dim = padded_scatter
    logger.debug("ranks exchange uneven rows padded to the most any of them has")


def answer_cpu_offload(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Have ``--optimizer-cpu-offload`` answered by ours; ``host_adam`` says why. Idempotent.

    For megatron-core 0.19, whose distributed optimizer knows its own by these names.
    """
    for module in (cast("Any", optimizer), cast("Any", distrib_optimizer)):
        assert hasattr(module, "HybridDeviceOptimizer"), "megatron-core has changed"
        module.HybridDeviceOptimizer = optimizer_class


def clip_in_few_kernels() -> None:
    """Norm and scale all gradients together instead of one after the other. Idempotent.

    Without apex or TransformerEngine megatron-core 0.19 launches kernels for every parameter and
    has the host wait for each of its norms.
    """
    module: Any = clip_grads
    if module.l2_norm_impl is local_multi_tensor_l2_norm:
        module.l2_norm_impl = _norm_of_all
    if module.multi_tensor_scale_impl is local_multi_tensor_scale:
        module.multi_tensor_scale_impl = _scale_all


def gather_keys_outside_of_compiled_code() -> None:
    """Leave the exchange inside multi-latent attention out of ``torch.compile``. Idempotent.

    Going back it adds up gradients of ranks by a collective that fills a tensor it is given. Traced
    as part of an autograd function, what that writes is lost (torch 2.11): the gradient of the
    shared part of keys, and with it of all that came before, is what memory held. For megatron-core
    0.19, where no other exchange is made by a compiled part of a layer.
    """
    module: Any = multi_latent_attention
    gather = module.gather_from_sequence_parallel_region
    if not hasattr(gather, "__wrapped__"):
        module.gather_from_sequence_parallel_region = torch.compiler.disable(gather)


def _norm_of_all(
    _chunk: int, _overflow: Tensor, lists: list[list[Tensor]], _each: bool
) -> tuple[Tensor, None]:
    (gradients,) = lists
    # In float32 also those in 16 bits: ranks add the squares up, and one without gradients has 0.0.
    norms = _lists._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(norms).norm().view(1), None


def _scale_all(_chunk: int, _overflow: Tensor, lists: list[list[Tensor]], scale: float) -> None:
    sources, targets = lists
    if not targets:  # which Megatron's loop takes, and these do not
        return
    if sources is not targets:
        _lists._foreach_copy_(targets, sources)
    _lists._foreach_mul_(targets, scale)


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
