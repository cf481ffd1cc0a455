import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from slime_core.batch import LossInputs
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.errors import PluginError
from slime_core.losses.functions import LossFunctions, custom_importance, custom_reducer
from slime_core.losses.policy import policy_loss
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import make_inputs, make_tokens, on_ranks, pick_tokens, vector
from slime_testing.ragged_case import ragged

ALONE = LocalReduce()
TIS = OffPolicyConfig(use_tis=True)

WEIGHTS = """
import torch

def tis(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **kwargs):
    ratio = torch.exp(torch.cat(train_log_probs) - torch.cat(rollout_log_probs))
    weight = ratio.clamp(max=args.tis_clip)
    return pg_loss * weight, loss_masks, {"raw": ratio}
"""

WHOLE = """
import torch

def tis(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, response_lengths, **_):
    assert [len(row) for row in train_log_probs] == list(response_lengths)
    assert [len(row) for row in loss_masks] == list(response_lengths)
    rows, masks, weights = [], [], []
    for loss, train, engine, mask in zip(
        pg_loss.split(list(response_lengths)), train_log_probs, rollout_log_probs, loss_masks
    ):
        weight = torch.exp(((train - engine) * mask).sum())
        # the first token of a response is left out, and every loss looks at its neighbours
        rows.append(loss * weight + 0.1 * (loss * mask).sum() ** 2)
        masks.append(mask * (torch.arange(len(mask)) > 0))
        weights.append(weight.expand(len(mask)))
    return torch.cat(rows), masks, {"weight": weights}
"""

NORMS = """
def reducer(total_lengths, response_lengths, masks, calculate_per_token_loss):
    def reduce(x):
        rows = x.split(list(response_lengths))
        norms = [((row * mask) ** 2).sum() for row, mask in zip(rows, masks)]
        return sum(norms, x.sum() * 0) * (2 if calculate_per_token_loss else 1)

    return reduce
"""


def written(directory, name, text):
    path = directory / f"{name}.py"
    path.write_text(text)
    return str(path)


def run(inputs, off_policy=TIS, **functions):
    config = PolicyLossConfig()
    return policy_loss(inputs, config, off_policy, ALONE, functions=LossFunctions(**functions))


def test_weights_of_the_users_take_the_place_of_the_built_in_ones(tmp_path):
    rollout = vector([-1.0 - math.log(4), -1.0, -1.0 + math.log(2)])
    inputs = make_inputs([1.0, 1.0, 1.0], [1.0, 2.0, 4.0], rollout_log_probs=rollout)
    weigh = custom_importance(written(tmp_path, "tis", WEIGHTS), {"tis_clip": 3.0})
    out = run(inputs, importance=weigh)
    assert out.loss.item() == pytest.approx(-(3.0 + 2.0 + 2.0) / 3)
    assert out.metrics["raw"].item() == pytest.approx((4.0 + 1.0 + 0.5) / 3)
    assert "tis" not in out.metrics
    (gradient,) = torch.autograd.grad(out.loss, inputs.log_probs)
    assert gradient.tolist() == pytest.approx([-1.0, -2 / 3, -2 / 3])
    built_in = run(inputs, OffPolicyConfig(use_tis=True, tis_clip=3.0))
    assert built_in.loss.item() == pytest.approx(out.loss.item())


def test_masks_of_the_users_leave_tokens_out_of_the_loss_but_not_of_its_mean(tmp_path):
    source = "def tis(*, pg_loss, **_):\n    return pg_loss, [pg_loss.detach() < -1.5], {}\n"
    inputs = make_inputs([1.0, 1.0], [1.0, 2.0], rollout_log_probs=vector([-1.0, -1.0]))
    out = run(inputs, importance=custom_importance(written(tmp_path, "tis", source), {}))
    assert out.loss.item() == pytest.approx(-2.0 / 2)


def test_weights_of_the_users_are_only_reported_when_only_metrics_are_asked_for(tmp_path):
    rollout = vector([-1.0 - math.log(4)])
    inputs = make_inputs([1.0], [1.0], rollout_log_probs=rollout)
    weigh = custom_importance(written(tmp_path, "tis", WEIGHTS), {"tis_clip": 3.0})
    out = run(inputs, OffPolicyConfig(get_mismatch_metrics=True), importance=weigh)
    assert out.loss.item() == pytest.approx(-1.0)
    assert out.metrics["raw"].item() == pytest.approx(4.0)


def test_rejection_goes_on_beside_weights_of_the_users(tmp_path):
    # ratios 4 and 2 of losses -1 and -2; rejection leaves out the first
    rollout = vector([-1.0 - math.log(4), -1.0 - math.log(2)])
    inputs = make_inputs([1.0, 1.0], [1.0, 2.0], rollout_log_probs=rollout)
    weigh = custom_importance(written(tmp_path, "tis", WEIGHTS), {"tis_clip": 9.0})
    settings = OffPolicyConfig(use_tis=True, use_rs=True, rs_upper_bound=3.0)
    out = run(inputs, settings, importance=weigh)
    assert out.loss.item() == pytest.approx(-2.0 * 2.0 / 2)
    assert out.metrics["rs_mask_fraction"].item() == pytest.approx(1 / 2)
    assert out.metrics["raw"].item() == pytest.approx((4.0 + 2.0) / 2)
    only_reported = replace(settings, use_tis=False, get_mismatch_metrics=True)
    out = run(inputs, only_reported, importance=weigh)
    assert out.loss.item() == pytest.approx(-2.0 / 2)
    assert out.metrics["raw"].item() == pytest.approx((4.0 + 2.0) / 2)


@pytest.mark.parametrize(
    ("result", "named"),
    [
        ("pg_loss[:1], torch.ones(1), {}", "`loss` must be one vector of the 2 response tokens"),
        ("pg_loss, torch.ones(2), {'mean': pg_loss.mean()}", "`mean` must be one vector"),
        ("pg_loss, torch.ones(2), {'mean': 0.5}", "`mean` must be .* is float"),
    ],
)
def test_what_is_not_per_token_is_named(tmp_path, result, named):
    source = f"import torch\n\ndef tis(*, pg_loss, **_):\n    return {result}\n"
    inputs = make_inputs([1.0, 1.0], [1.0, 2.0], rollout_log_probs=vector([-1.0, -1.0]))
    weigh = custom_importance(written(tmp_path, "tis", source), {})
    with pytest.raises(PluginError, match=named):
        run(inputs, importance=weigh)


@pytest.mark.parametrize("result", ["pg_loss", "(pg_loss, [])", "None"])
def test_importance_functions_return_three_things(tmp_path, result):
    weigh = custom_importance(
        written(tmp_path, "tis", f"def tis(*, pg_loss, **_):\n    return {result}\n"), {}
    )
    inputs = make_inputs([1.0, 1.0], [1.0, 2.0], rollout_log_probs=vector([-1.0, -1.0]))
    with pytest.raises(PluginError, match=r"must return \(loss, masks, metrics\), returned"):
        run(inputs, importance=weigh)


def test_a_reducer_that_is_no_function_is_named(tmp_path):
    reducer = custom_reducer(written(tmp_path, "reducer", "def reducer(*_):\n    return 1.0\n"), {})
    with pytest.raises(PluginError, match=r"must return a function of the loss per token.* 1\.0"):
        run(make_inputs([1.0], [1.0]), OffPolicyConfig(), reducer=reducer)


def test_a_reduction_of_the_users_by_hand(tmp_path):
    tokens = make_tokens([2, 2], mask=[1.0, 1.0, 0.0, 1.0], denominators=99.0)
    inputs = make_inputs([1.0] * 4, [1.0, 2.0, 5.0, 3.0], tokens=tokens)
    path = written(tmp_path, "reducer", NORMS)
    out = run(inputs, OffPolicyConfig(), reducer=custom_reducer(path, {}))
    assert out.loss.item() == pytest.approx(1 + 4 + 9)
    (gradient,) = torch.autograd.grad(out.loss, inputs.log_probs)
    # d(x^2) = 2 x dx with x = -r A and dx = -A dlogp
    assert gradient.tolist() == pytest.approx([2.0, 8.0, 0.0, 18.0])
    per_token = custom_reducer(path, {"calculate_per_token_loss": True})
    assert run(inputs, OffPolicyConfig(), reducer=per_token).loss.item() == pytest.approx(28)


def test_entropy_is_aggregated_as_ever_beside_a_reduction_of_the_users(tmp_path):
    tokens = make_tokens([2], denominators=4.0)
    inputs = make_inputs([1.0, 1.0], [1.0, 1.0], tokens=tokens, entropy=vector([1.0, 3.0]))
    reducer = custom_reducer(written(tmp_path, "reducer", NORMS), {})
    config = PolicyLossConfig(entropy_coef=0.5)
    functions = LossFunctions(reducer=reducer)
    out = policy_loss(inputs, config, OffPolicyConfig(), ALONE, functions=functions)
    assert out.loss.item() == pytest.approx(2.0 - 0.5 * (1 + 3) / 4)
    assert out.metrics["pg_loss"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("result", ["x", "1.0"])
def test_a_reduction_to_anything_but_a_number_is_named(tmp_path, result):
    source = f"def reducer(*_):\n    return lambda x: {result}\n"
    reducer = custom_reducer(written(tmp_path, "reducer", source), {})
    inputs = make_inputs([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(PluginError, match="must give one number"):
        run(inputs, OffPolicyConfig(), reducer=reducer)


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    directory = tmp_path_factory.mktemp("functions")
    return LossFunctions(
        custom_importance(written(directory, "whole", WHOLE), {}),
        custom_reducer(written(directory, "norms", NORMS), {}),
    )


def over_ranks(inputs, places, functions):
    """Loss, metrics and gradient of ranks that hold the tokens at ``places``."""
    leaf = inputs.log_probs.detach().clone().requires_grad_()
    names = ("log_probs", "old_log_probs", "rollout_log_probs", "advantages")

    def work(rank, reduce):
        held = places[rank]
        whole = replace(inputs, log_probs=leaf)
        parts = {name: getattr(whole, name)[held] for name in names}
        local = LossInputs(pick_tokens(inputs.tokens, held), **parts)
        return policy_loss(local, PolicyLossConfig(), TIS, reduce, functions=functions)

    outs = on_ranks(len(places), work)
    loss = torch.stack([out.loss for out in outs]).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    metrics = {name: sum(out.metrics[name].item() for out in outs) for name in outs[0].metrics}
    return loss.item(), metrics, gradient


@pytest.mark.parametrize("which", ["importance", "reducer", "both"])
@settings(max_examples=30)
@given(step=ragged(min_samples=1))
def test_functions_see_whole_responses_on_every_context_rank(functions, which, step):
    chosen = {
        "importance": LossFunctions(importance=functions.importance),
        "reducer": LossFunctions(reducer=functions.reducer),
        "both": functions,
    }[which]
    vectors = step.vectors("log_probs", "old_log_probs", "rollout_log_probs", "advantages")
    inputs = LossInputs(step.tokens(3.0), **vectors)
    size = sum(step.lengths)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(step.seed))
    alone = over_ranks(inputs, [torch.arange(size)], chosen)
    for places in ([order[::2], order[1::2]], [order[:1], order[:0], order[1:]]):
        loss, metrics, gradient = over_ranks(inputs, places, chosen)
        assert loss == pytest.approx(alone[0], rel=1e-9, abs=1e-12)
        assert metrics == pytest.approx(alone[1], rel=1e-9, abs=1e-12)
        torch.testing.assert_close(gradient, alone[2], rtol=1e-9, atol=1e-12)


def test_the_gradient_of_a_function_is_that_of_finite_differences(functions):
    torch.manual_seed(0)
    old = torch.randn(6, dtype=torch.float64) - 2
    tokens = make_tokens([2, 3, 1], mask=[1.0, 1, 0, 1, 1, 1], denominators=6.0)
    base = make_inputs(
        [1.0] * 6,
        torch.randn(6).tolist(),
        tokens=tokens,
        old_log_probs=old,
        rollout_log_probs=old + 0.1 * torch.randn(6, dtype=torch.float64),
    )

    def loss(log_probs):
        inputs = replace(base, log_probs=log_probs)
        return policy_loss(inputs, PolicyLossConfig(), TIS, ALONE, functions=functions).loss

    start = (old + 0.1 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (start,))
