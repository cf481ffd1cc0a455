"""The random generators of one rank as plain data: Python's, NumPy's, torch's and Megatron's."""

import random
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from slime_megatron.mcore.startup.initialize import seed_generators

_STRIDE = 1_000_003
"""Between the seeds of consecutive iterations; a prime, far from Megatron's 100 a stage."""


def capture() -> dict[str, Any]:
    """The state of every generator, as numbers, strings and tensors.

    No pickled classes, so that ``torch.load(weights_only=True)`` reads it.
    """
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": {name: state.clone() for name, state in tracker.get_states().items()},
    }


def restore(state: dict[str, Any]) -> None:
    """Continue every generator where ``capture`` saw it."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    key = numpy_state["key"].numpy().astype(np.uint32)
    legacy = ("MT19937", key, *(numpy_state[name] for name in ("position", "has_gauss", "gauss")))
    np.random.set_state(legacy)
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["device"])
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    tracker.set_states({name: value.clone() for name, value in state["tracker"].items()})


def reseed(seed: int, iteration: int, pipeline_rank: int) -> int:
    """Seed every generator afresh for a run that continues at ``iteration``; return the seed.

    For ranks whose saved state is of no use because there are more or fewer of them now. As at
    start-up, pipeline stages differ and data-parallel replicas agree.
    """
    seed = (seed + _STRIDE * (iteration + 1)) % 2**31 + 100 * pipeline_rank
    seed_generators(seed)
    return seed
