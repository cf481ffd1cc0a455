"""PPO through the command line: two groups of ranks, one checkpoint."""

import shutil

import pytest
from slime_core.data.dump import write_dump
from slime_core.files.staging import TRACKER
from slime_core.types import SampleGroup
from slime_testing import make_sample
from slime_testing.documented import undocumented
from slime_testing.runs import metrics, run, series
from slime_testing.tiny import make_qwen3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("ppo")
    for iteration in range(3):
        groups = [
            SampleGroup(
                g,
                tuple(
                    make_sample(5 + s, group_index=g, rollout_id=2 * g + s, reward=float(s))
                    for s in range(2)
                ),
            )
            for g in range(4)
        ]
        write_dump(str(root / "dump-{rollout_id}.pt"), iteration, groups)
    roles = root / "roles.yaml"
    roles.write_text("megatron: [{role: critic, overrides: {lr: 1.0e-2}}]")
    return make_qwen3(root / "model"), root / "dump-{rollout_id}.pt", roles


def command(inputs, directory, num_rollout):
    model, dump, roles = inputs
    return [
        "--hf-checkpoint", model, "--load-debug-rollout-data", dump, "--debug-train-only",
        "--advantage-estimator", "ppo", "--normalize-advantages", "--lambd", 0.95,
        "--megatron-config-path", roles, "--num-critic-only-steps", 1, "--num-rollout", num_rollout,
        "--rollout-batch-size", 4, "--n-samples-per-prompt", 2, "--num-steps-per-rollout", 2,
        "--lr", "1e-3",
        "--output-dir", directory / "out", "--save", directory / "save", "--save-interval", 2,
    ]  # fmt: skip


def test_actor_and_critic_train_together_and_continue_together(inputs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(*command(inputs, whole, 3))
    values = series(whole / "out", "critic/value_loss")
    assert list(values) == [0, 1, 2]
    assert values[2] < values[0]
    assert list(series(whole / "out", "train/loss")) == [1, 2], "the critic goes first"
    assert set(series(whole / "out", "critic/lr-pg_0").values()) == {1e-2}
    assert set(series(whole / "out", "train/lr-pg_0").values()) == {1e-3}
    assert undocumented(name for row in metrics(whole / "out") for name in row) == set()

    # As the run would have left it, had it been interrupted after its first checkpoint.
    shutil.copytree(whole / "save" / "iter_0000001", parts / "save" / "iter_0000001")
    (parts / "save" / TRACKER).write_text("1")
    assert "continuing from" in run(*command(inputs, parts, 3))
    for name in ("critic/value_loss", "train/grad_norm", "rollout/values", "rollout/returns"):
        assert series(parts / "out", name) == {2: series(whole / "out", name)[2]}, name
