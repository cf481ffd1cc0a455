import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from slime_core.advantages.custom import custom_advantages
from slime_core.batch import Ragged
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.aggregate import LossOutput
from slime_core.losses.functions import LossFunctions, custom_importance
from slime_core.reduce import LocalReduce
from slime_core.schedule.plan import RankStep, StepCounts
from slime_core.types import SampleGroup
from slime_megatron.iteration.microbatch_loss import MicrobatchLoss, cut
from slime_megatron.iteration.objective import Objective
from slime_megatron.iteration.passes import Entropy, StepResult
from slime_megatron.iteration.signals import Vectors
from slime_megatron.iteration.stages import RankPayload, train_iteration
from slime_megatron.packing.pack import PackLayout, pack_steps
from slime_testing import make_sample


class Constant:
    """A policy that gives every token the log-probability -1."""

    layout, last_stage, reports = PackLayout(), True, True
    context = data = LocalReduce()
    using = nullcontext

    def scores(self, microbatches, entropy=Entropy.NONE):
        count = sum(m.rows.numel() for m in microbatches)
        lengths = [n for m in microbatches for n in m.response_lengths]
        values = Ragged(torch.full((count,), -1.0), torch.tensor(lengths))
        return values, values

    def step(self, items, size, entropy=Entropy.NONE, *, logits=False):
        outputs = [
            item.loss(torch.stack([torch.full((n,), -1.0), torch.zeros(n)]))
            for item in items
            for n in [item.microbatch.rows.numel()]
        ]
        total = sum(output.loss for output in outputs).item() / size.divisor
        return StepResult({"loss": total}, 0.0, updated=True, learning_rates=(0.0,))


def test_user_functions_decide_advantages_and_weights(tmp_path):
    (tmp_path / "adv.py").write_text(
        "def f(args, rollout_data):\n"
        "    rows = [m * args.value for m in rollout_data['loss_masks']]\n"
        "    assert rollout_data['log_probs'][0].tolist() == [-1.0] * 2\n"
        "    rollout_data['advantages'] = rollout_data['returns'] = rows\n"
    )
    (tmp_path / "tis.py").write_text(
        "def f(args, *, pg_loss, loss_masks, **kw):\n    return pg_loss * 10, loss_masks, {}\n"
    )
    objective = Objective(
        advantage=AdvantageConfig(),
        policy_loss=PolicyLossConfig(),
        off_policy=OffPolicyConfig(use_tis=True),
        custom_advantages=custom_advantages(str(tmp_path / "adv.py"), {"value": 3.0}),
        functions=LossFunctions(importance=custom_importance(str(tmp_path / "tis.py"), {})),
    )
    samples = (make_sample(2, rollout_id=0), make_sample(4, rollout_id=1))
    batch = collate([SampleGroup(0, samples)], reward_key=None, advantage=objective.advantage)
    payload = RankPayload(batch, (RankStep(((0,), (1,)), StepCounts(2, 2, 6.0)),))
    report, vectors = train_iteration(Constant(), payload, objective)
    assert report.steps[0].metrics["loss"] == pytest.approx(-30.0)
    assert report.rollout["advantages"] == pytest.approx(3.0)
    assert vectors.advantages.values.tolist() == [3.0] * 6


def test_the_page_lists_what_a_custom_loss_is_given():
    page = (Path(__file__).parents[2] / "docs" / "customize.md").read_text()
    section = page.partition("### What `batch` of a custom loss holds\n")[2].partition("\n##")[0]
    samples = (make_sample(2, rollout_id=0), make_sample(4, rollout_id=1))
    batch = collate([SampleGroup(0, samples)], reward_key=None, advantage=AdvantageConfig())
    (packed,) = pack_steps(batch, (RankStep(((0, 1),), StepCounts(2, 2, 6.0)),), PackLayout())
    every = {field.name: batch.loss_mask for field in dataclasses.fields(Vectors)}
    given = []

    def loss(batch, logits, tokens):
        given.append(batch)
        return LossOutput(logits.sum(), {})

    MicrobatchLoss(
        objective=Objective(
            advantage=AdvantageConfig(),
            policy_loss=PolicyLossConfig(loss_type="custom_loss"),
            off_policy=OffPolicyConfig(),
            custom_loss=loss,
        ),
        context=LocalReduce(),
        batch=batch,
        rows=(0, 1),
        microbatch=packed[0],
        vectors=cut(Vectors(**every).per_sample(), (0, 1), packed[0]),
    )(torch.zeros(1, 11, 3))
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(given[0])
