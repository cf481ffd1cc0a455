import dataclasses
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from slime_core.advantages.custom import custom_advantages
from slime_core.batch import Ragged
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig
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


class Policies(Constant):
    """The trained policy as above; the reference and the teacher give every token less."""

    def __init__(self):
        self.asked = ""

    @contextmanager
    def using(self, policy):
        self.asked = policy
        yield
        self.asked = ""

    def scores(self, microbatches, entropy=Entropy.NONE):
        values, entropies = super().scores(microbatches, entropy)
        log_prob = {"": -1.0, "ref": -2.0, "teacher": -4.0}[self.asked]
        return Ragged(torch.full_like(values.values, log_prob), values.lengths), entropies


@pytest.mark.parametrize("from_engines", [False, True])
def test_divergences_that_lower_advantages_are_reported(from_engines):
    advantage = AdvantageConfig(advantage_estimator="reinforce_plus_plus", kl_coef=0.5)
    objective = Objective(
        advantage=advantage,
        policy_loss=PolicyLossConfig(kl_loss_type="k2"),
        off_policy=OffPolicyConfig(use_rollout_logprobs=from_engines),
        distillation=DistillationConfig(use_opd=True, opd_type="megatron"),
    )
    samples = [make_sample(n, rollout_id=n, rollout_log_probs=[-3.0] * n) for n in (2, 4)]
    samples[1].loss_mask = [1, 0, 0, 1]
    batch = collate([SampleGroup(0, tuple(samples))], reward_key=None, advantage=advantage)
    payload = RankPayload(batch, (RankStep(((0, 1),), StepCounts(2, 2, 4.0)),))
    report, _ = train_iteration(Policies(), payload, objective)
    # log-probabilities: policy -1 (or the engines' -3), reference -2, teacher -4
    assert report.rollout["kl"] == pytest.approx(0.5)  # half of 1 squared, either way
    assert report.rollout["opd_reverse_kl"] == pytest.approx(1.0 if from_engines else 3.0)


def given_to_a_custom_loss(off_policy, vectors):
    """``batch`` of a custom loss for two samples."""
    samples = (make_sample(2, rollout_id=0), make_sample(4, rollout_id=1))
    batch = collate([SampleGroup(0, samples)], reward_key=None, advantage=AdvantageConfig())
    (packed,) = pack_steps(batch, (RankStep(((0, 1),), StepCounts(2, 2, 6.0)),), PackLayout())
    given = []

    def loss(batch, logits, tokens):
        given.append(batch)
        return LossOutput(logits.sum(), {})

    MicrobatchLoss(
        objective=Objective(
            advantage=AdvantageConfig(),
            policy_loss=PolicyLossConfig(loss_type="custom_loss"),
            off_policy=off_policy,
            custom_loss=loss,
        ),
        context=LocalReduce(),
        batch=batch,
        rows=(0, 1),
        microbatch=packed[0],
        vectors=cut(vectors(batch.loss_mask).per_sample(), (0, 1), packed[0]),
    )(torch.zeros(1, 11, 3))
    return given[0]


def every_vector(mask):
    return Vectors(**{field.name: mask for field in dataclasses.fields(Vectors)})


def test_the_page_lists_what_a_custom_loss_is_given():
    page = (Path(__file__).parents[2] / "docs" / "customize.md").read_text()
    section = page.partition("### What `batch` of a custom loss holds\n")[2].partition("\n##")[0]
    given = given_to_a_custom_loss(OffPolicyConfig(), every_vector)
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(given)


def test_the_engines_can_stand_for_the_old_policy_of_a_custom_loss():
    def of_engines(mask):
        drawn = Ragged(torch.arange(6.0), mask.lengths)
        return Vectors(mask=mask, denominators=mask, rollout_log_probs=drawn)

    given = given_to_a_custom_loss(OffPolicyConfig(use_rollout_logprobs=True), of_engines)
    assert [x.tolist() for x in given["log_probs"]] == [[0, 1], [2, 3, 4, 5]]
