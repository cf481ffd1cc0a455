"""Import Megatron once, quietly, with the CPU shim in place where it is needed."""

import importlib
import logging
import os
import warnings

from slime_core.processes.imports import lean

from slime_megatron.mcore.startup import cpu
from slime_megatron.mcore.startup.quiet import quiet

_MODULES = (
    "megatron.core.parallel_state",
    "megatron.core.models.gpt",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.training.arguments",
)
_OTHER_KERNELS = ("transformer_engine", "apex", "amp_C")
"""Packages with whose optimizers and norms Megatron replaces PyTorch's where they are installed."""


def load() -> bool:
    """Import Megatron; must come before any other module of this package. Idempotent.

    What else is installed changes nothing: Megatron is kept from taking its Adam and its gradient
    norm from TransformerEngine or apex, which know neither a CPU nor the same checkpoints.

    Returns whether it runs on the CPU (see ``cpu.install``). Also sets
    ``CUDA_DEVICE_MAX_CONNECTIONS=1`` unless it is set: Megatron insists on it for tensor and
    context parallelism before Blackwell, and CUDA reads it only once.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    on_cpu = cpu.install()
    # "No CUDA runtime is found", and GPTModel's deprecation in favour of a hybrid model class.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    # What Megatron does that is warned about at every step; on the CPU it seems to come from here.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", message="The .grad attribute", module=cpu.__name__)
    with quiet(), cpu.lean_imports(), lean(*_OTHER_KERNELS):
        for name in _MODULES:
            importlib.import_module(name)
        patches = importlib.import_module("slime_megatron.mcore.patches")
    patches.know_no_transformer_engine()
    if on_cpu:
        patches.exchange_uneven_rows_by_padding()
    return on_cpu
