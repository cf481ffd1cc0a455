"""Functions of the user's inside the trainer, on a real model of one rank."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FUNCTIONS = """
import json
from pathlib import Path

def note(args, *row):
    with Path(args.log).open("a") as log:
        log.write(json.dumps(row) + "\\n")

def after_init(args):
    import torch.distributed as dist
    note(args, "init", dist.get_world_size())

def before_scores(args, model, store_prefix):
    note(args, "scores", store_prefix, len(model))

def before_step(args, rollout_id, step_id, model, optimizer, opt_param_scheduler):
    note(args, "step", rollout_id, step_id, len(optimizer.param_groups) > 0)

def no_advantages(args, rollout_id, rollout_data):
    note(args, "data", rollout_id, len(rollout_data["advantages"]))
    rollout_data["advantages"] = [0 * row for row in rollout_data["advantages"]]

def provide(pre_process, post_process, vp_stage=None):
    raise SystemExit("a model of my own")
"""


def two_iterations(rank: int, world: int, root: str) -> dict[str, Any]:
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.config.debug import DebugConfig
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    functions = f"{root}/functions.py"
    config = make_config(
        Path(root) / "model",
        policy_loss=PolicyLossConfig(use_kl_loss=True),
        debug=DebugConfig(
            custom_megatron_init_path=f"{functions}:after_init",
            custom_megatron_before_log_prob_hook_path=f"{functions}:before_scores",
            custom_megatron_before_train_step_hook_path=f"{functions}:before_step",
        ),
        rollout_data_postprocess_path=f"{functions}:no_advantages",
        flat={"log": f"{root}/log.jsonl"},
    )
    config = replace(config, batch=replace(config.batch, global_batch_size=4))
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, rank)
    metrics = [trainer.train(iteration, payload) for iteration in (5, 6)]
    own = replace(config.model, custom_model_provider_path=f"{functions}:provide")
    try:
        TrainerRank(replace(config, model=own), rank, world).initialize()
    except SystemExit as error:
        return {"metrics": metrics, "provided": str(error)}
    raise AssertionError("the model provider was not asked")


def test_functions_are_called_where_upstream_calls_them_and_change_what_is_trained(
    tmp_path: Path,
) -> None:
    make_qwen3(tmp_path / "model")
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (found,) = run_on_ranks(1, two_iterations, str(tmp_path), megatron=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    once = [["scores", "ref_", 1], ["scores", "", 1]]
    iteration = [*once, ["data", 5, 10], ["step", 5, 0, True], ["step", 5, 1, True]]
    assert rows[0] == ["init", 1]
    assert rows[1:6] == iteration
    assert [row[:3] for row in rows if row[0] == "step"] == [
        ["step", 5, 0], ["step", 5, 1], ["step", 6, 0], ["step", 6, 1],
    ]  # fmt: skip
    assert found["metrics"][0]["rollout/advantages"] == 0.0
    assert found["metrics"][0]["train/pg_loss"] == 0.0
    assert found["provided"] == "a model of my own"
