from types import SimpleNamespace

import pytest
from slime_core.no_trainer import NoTrainer
from slime_core.reports.phases import Phases
from slime_core.residency import SideBySide
from slime_train.loop import Cadence, Job, train


def test_the_loop_generates_and_evaluates_without_a_trainer():
    done = []
    rollout = SimpleNamespace(
        begin=lambda i: lambda: (done.append(("generate", i)), {"rollout/x": float(i)}),
        evaluate=lambda v: done.append(("evaluate", v)) or {},
        published=lambda v: None,
    )
    logged = []
    job = Job(
        rollout=rollout,
        trainer=NoTrainer(),
        residency=SideBySide(),
        save=lambda i: pytest.fail("there is nothing to save"),
        log=lambda step, metrics: logged.append(metrics),
        phase=Phases(),
    )
    train(job, Cadence(first=0, last=2, eval_every=2))
    assert done == [("generate", 0), ("generate", 1), ("evaluate", 2)]
    assert {"rollout/x": 1.0} in logged


def test_a_trainer_that_is_none_is_ready_at_once():
    first, seconds = NoTrainer().initialize("file:///nowhere", None)()
    assert (first, seconds) == (0, {})
    assert NoTrainer().finish_save(wait=False)
