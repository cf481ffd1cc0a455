"""Every line of the tables in docs/algorithms.md trains, and names a test that is there."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slime_core.types import SampleGroup, Status
from slime_testing import make_sample
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from slime_testing.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PAGE = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and "`--" in line
]
LINES = [row[2].strip("`") for row in ROWS]
OFFLINE = ("sft_loss", "dpo_loss", "rm_loss")

FUNCTIONS = {
    "my_loss.py": re.search(r"# my_loss.py\n(.*?)```", PAGE, re.DOTALL).group(1),
    "my_advantages.py": """
def custom_advantage(args, rollout_data):
    pairs = zip(rollout_data["loss_masks"], rollout_data["rewards"])
    rows = [mask * reward for mask, reward in pairs]
    rollout_data["advantages"] = rollout_data["returns"] = rows
""",
    "my_rewards.py": """
def reward_post_process(args, samples):
    rewards = [(sample.reward or {}).get(args.reward_key, 0.0) for sample in samples]
    return rewards, [reward - 0.5 for reward in rewards]
""",
    "my_reducer.py": """
import torch

def pg_loss_reducer(total_lengths, response_lengths, masks, calculate_per_token_loss):
    return lambda loss: (loss * torch.cat(masks)).sum() / 100
""",
    "my_weights.py": """
def custom_tis(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **kwargs):
    return pg_loss * 0.5, loss_masks, {}
""",
}


def groups(iteration: int) -> list[SampleGroup]:
    """Ragged responses with everything any line may look at; one sample failed."""
    made: list[SampleGroup] = []
    for g in range(4):
        samples = [
            make_sample(
                length := 3 + 2 * g + s,
                index=4 * g + s,
                group_index=g,
                rollout_id=4 * g + s,
                tokens=[(7 * g + 3 * s + k) % 90 for k in range(2 + length)],
                reward={"accuracy": float((g + s) % 2), "format": float(s % 3 == 0)},
                rollout_log_probs=[-4.4 - 0.1 * s] * length,
                teacher_log_probs=[-4.0] * length,
                token_versions=[iteration if k % 2 else 0 for k in range(length)],
            )
            for s in range(4)
        ]
        if g == 3:
            samples[3] = replace(samples[3], status=Status.FAILED, reward=None)
        made.append(SampleGroup(g, tuple(samples), baseline=0.5))
    return made


def prepare(root: Path) -> None:
    """Models, dumps, data and functions, under the names the page uses."""
    from slime_core.data.dump import write_dump

    make_qwen3(root / "model")
    make_qwen3(root / "teacher", seed=3)
    for iteration in range(2):
        write_dump(str(root / "dump-{rollout_id}.pt"), iteration, groups(iteration))
    row = {"prompt": "1+2=", "label": "3", "chosen": "3", "rejected": "it is 4"}
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    for name, text in FUNCTIONS.items():
        (root / name).write_text(text)


def command(root: Path, line: str) -> list[str]:
    """The whole command line around a line of the page."""
    shared = f"--hf-checkpoint {root}/model --num-rollout 2 --lr 1e-3 --output-dir {root}/out"
    if any(loss in line for loss in OFFLINE):
        shared += f" --prompt-data {root}/rows.jsonl --apply-chat-template --rollout-batch-size 4"
    else:
        shared += (
            f" --load-debug-rollout-data {root}/dump-{{rollout_id}}.pt --debug-train-only"
            " --rollout-batch-size 4 --n-samples-per-prompt 4 --num-steps-per-rollout 2"
            " --rollout-max-response-len 64 --reward-key accuracy"
        )
    words = line.replace("/models/teacher", f"{root}/teacher").split()
    given = [f"{root}/{word}" if word in FUNCTIONS else word for word in words]
    return [*shared.split(), *given]


def two_iterations(root: Path, line: str) -> list[dict[str, float]]:
    """What the actor and its critic, if there is one, report."""
    from slime_train.facts import gather
    from slime_train.resolve import resolve
    from slime_train.rollout_host import RolloutHost
    from slime_train.sources import read_sources
    from slime_train.trainer_host import TrainerHost

    raw = read_sources(command(root, line))
    config = resolve(raw, gather(raw)).config
    rollout = RolloutHost(config, root)
    rollout.start(None)
    critic = config.of_critic and TrainerHost(config.of_critic, 0, 1, "critic")
    actor = TrainerHost(config, 0, 1, "actor")
    for trainer in filter(None, (actor, critic)):
        trainer.initialize(None, None)
    found: list[dict[str, float]] = []
    for iteration in range(2):
        (payload,), metrics = rollout.generate(iteration)
        given: dict[str, Any] = {"values": critic.values(payload)} if critic else {}
        metrics = {**metrics, **actor.train(iteration, payload, given)}
        if critic:
            given["returns"] = actor.returns()
            metrics |= critic.train(iteration, payload, given)
        actor.publish(iteration + 1)
        found.append(metrics)
    rollout.stop()
    return found


def all_lines(rank: int, world: int, root: str, lines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines:
        try:
            found[line] = two_iterations(Path(root), line)
        except Exception as error:  # one line's failure is that line's
            found[line] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("algorithms")
    prepare(root)
    return run_on_ranks(1, all_lines, str(root), LINES, megatron=True, seconds=1800)[0]


@pytest.mark.parametrize("line", LINES)
def test_every_line_trains_for_two_iterations(results: dict[str, Any], line: str):
    found = results[line]
    assert isinstance(found, list), found
    assert "train/loss" in found[1]
    for metrics in found:
        odd = {name: x for name, x in metrics.items() if not math.isfinite(x)}
        assert odd == {}


@pytest.mark.parametrize("row", ROWS, ids=LINES)
def test_every_line_names_a_test_that_is_there(row: list[str]):
    file, _, name = row[4].strip("`").partition("::")
    tests = ROOT / "tests"
    paths = [path for path in (tests / "slime_core" / file, tests / file) if path.is_file()]
    assert paths, file
    assert not name or f"def {name}(" in paths[0].read_text(encoding="utf-8")
