"""A trainer that is dropped leaves nothing behind."""

from pathlib import Path

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = pytest.mark.slow


def train_and_drop(rank: int, world: int, directory: str) -> tuple[bool, bool]:
    """Whether the model was there while the trainer was, and after it."""
    import gc
    import weakref

    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.layout_case import STATIC, Case
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    case = Case(ParallelLayout(), flags=("--use-distributed-optimizer",))
    trainer = TrainerRank(make_config(Path(directory), *case.argv, batch=STATIC), rank, world)
    trainer.initialize()
    trainer.train(0, make_payload(make_batch(), case.layout, STATIC, rank))
    model = weakref.ref(trainer._state.chunks[0])
    during = model() is not None
    del trainer
    gc.collect()
    return during, model() is not None


def test_a_trainer_that_is_dropped_takes_its_model_along(tmp_path: Path) -> None:
    directory = str(make_qwen3(tmp_path / "model"))
    assert run_on_ranks(1, train_and_drop, directory, megatron=True) == [(True, False)]
