"""No pass reads weights that are still on their way from other ranks."""

from pathlib import Path

import pytest
from slime_testing.layout_case import OVERLAPPING
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3


def pass_that_does_not_wait(rank: int, world: int, directory: str) -> str:
    """What is said of an output layer that is read as it is."""
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore.logprobs import output_processor
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(Path(directory), *OVERLAPPING)
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    layout = ParallelLayout(dp=2)
    payload = make_payload(make_batch(), layout, config.batch, rank)
    trainer.train(0, payload)
    output_processor.wait_for_weights = lambda module: None
    with pytest.raises(RuntimeError) as caught:
        trainer.train(1, payload)
    return str(caught.value)


def test_weights_that_nothing_waited_for_are_named(tmp_path: Path):
    directory = str(make_qwen3(tmp_path / "model"))
    for said in run_on_ranks(2, pass_that_does_not_wait, directory, megatron=True):
        assert "waited for: module.output_layer.weight " in said
        assert "--overlap-param-gather" in said
