"""What a rank of the trainer sees of its machine."""

from pathlib import Path

import pytest
from slime_core.config.cluster import ClusterConfig
from slime_core.errors import ConfigError
from slime_megatron.processes import rank_environment


def on_gpus(rank: int) -> str:
    cluster = ClusterConfig(device="cuda", actor_num_gpus_per_node=4)
    return rank_environment(cluster, rank, 4)["CUDA_VISIBLE_DEVICES"]


def test_a_rank_sees_its_gpu_counted_within_those_of_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert on_gpus(2) == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6")
    assert on_gpus(2) == "6"


def test_a_rank_beyond_the_gpus_of_the_run_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match=r"GPU 2 .* CUDA_VISIBLE_DEVICES=4,5 shows 2"):
        on_gpus(2)


def test_a_trainer_that_is_to_use_a_gpu_never_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import torch
    from slime_megatron.mcore.startup import bootstrap
    from slime_megatron.trainer import TrainerRank
    from slime_testing.tiny import make_qwen3
    from slime_testing.trainer_case import make_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bootstrap, "load", lambda: pytest.fail("went on without a GPU"))
    config = make_config(make_qwen3(tmp_path), device="cuda")
    with pytest.raises(ConfigError, match="finds no GPU in trainer rank 1") as caught:
        TrainerRank(config, 1, 2).initialize(load=Path("c"))
    assert "nvidia-smi" in str(caught.value)
    assert "--device cpu" in str(caught.value)
