"""Megatron is the same whatever else is installed."""

import sys
from pathlib import Path
from typing import Any

import pytest
from slime_testing.ranks import run_alone

OTHERS = ("transformer_engine", "apex", "amp_C")


def loaded(site: str) -> dict[str, Any]:
    """What Megatron took, where packages are found that would replace PyTorch's optimizers."""
    sys.path.insert(0, site)
    early = __import__("apex")  # as a user's own module may
    from slime_megatron.mcore.startup import bootstrap

    bootstrap.load()
    from megatron.core import optimizer, utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer

    return {
        "Adam": optimizer.Adam.__module__,
        "without others": not distrib_optimizer.HAVE_APEX_OR_TE,
        "norm": clip_grads.l2_norm_impl.__module__,
        "version": str(utils.get_te_version()),
        "newer": utils.is_te_min_version("1.0.0"),
        "imported": [name for name in OTHERS if name in sys.modules],
        "same": sys.modules["apex"] is early,
    }


@pytest.mark.timeout(120)
def test_megatron_takes_nothing_from_packages_that_happen_to_be_installed(tmp_path: Path):
    for name in (*OTHERS, "transformer_engine/pytorch"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text("__version__ = '2.20.2'\n")
    names = (
        *("FusedAdam", "FusedSGD", "multi_tensor_applier", "multi_tensor_l2norm"),
        *("multi_tensor_scale", "multi_tensor_scale_tensor"),
    )
    kernels = "".join(f"def {name}(*args): ...\n" for name in names)
    (tmp_path / "transformer_engine/pytorch/optimizers.py").write_text(kernels)
    found = run_alone(loaded, str(tmp_path))
    assert found == {
        "Adam": "torch.optim.adamw",
        "without others": True,
        "norm": "megatron.core.utils",
        "version": "0.0.0",
        "newer": False,
        "imported": ["apex"],
        "same": True,
    }
