"""The two command lines of the quickstart, as a user would type them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from slime_train.quickstart.task import TaskFiles

WARM_UP_ITERATIONS = 20
GRPO_ITERATIONS = 40
EVALUATION_SET = "sums"


def warm_up(model: Path, task: TaskFiles, output: Path, *, seed: int) -> list[str]:
    """Supervised fine-tuning on the teacher's demonstrations; writes ``output``/hf."""
    return _words(
        f"slime-train --hf-checkpoint {_quoted(model)} --output-dir {_quoted(output)}",
        "--loss-type sft_loss --calculate-per-token-loss",
        f"--prompt-data {_quoted(task.demonstrations)} --input-key messages",
        f"--num-rollout {WARM_UP_ITERATIONS} --rollout-batch-size 1024 --global-batch-size 32",
        "--use-dynamic-batch-size --max-tokens-per-gpu 4096",
        "--lr 3e-3 --lr-warmup-iters 32 --lr-decay-style WSD --lr-wsd-decay-style linear",
        "--lr-wsd-decay-iters 160 --adam-beta2 0.95",
        f"--weight-decay 0 --seed {seed}",
        f"--save {_quoted(output / 'checkpoints')} --save-interval {WARM_UP_ITERATIONS}",
        f"--save-hf {_quoted(output / 'hf')}",
    )


def reinforce(model: Path, task: TaskFiles, output: Path, *, seed: int) -> list[str]:
    """GRPO from the warmed-up model, evaluated before and after."""
    return _words(
        f"slime-train --hf-checkpoint {_quoted(model)} --output-dir {_quoted(output)}",
        f"--prompt-data {_quoted(task.train)} --input-key prompt --label-key label",
        f"--apply-chat-template --rollout-shuffle --rollout-seed {seed}",
        f"--rm-type math --num-rollout {GRPO_ITERATIONS}",
        "--rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256",
        "--rollout-temperature 1 --rollout-max-response-len 8",
        "--advantage-estimator grpo --eps-clip 0.2",
        "--use-dynamic-batch-size --max-tokens-per-gpu 4096",
        f"--lr 1e-3 --adam-beta2 0.95 --weight-decay 0 --seed {seed}",
        f"--eval-prompt-data {EVALUATION_SET} {_quoted(task.evaluation)}",
        "--eval-interval 10 --n-samples-per-eval-prompt 4",
        f"--save-hf {_quoted(output / 'hf')}",
    )


def printable(words: Sequence[str]) -> str:
    """The command for a shell, one flag to a line."""
    lines = [words[0]]
    for word in words[1:]:
        if word.startswith("--"):
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


def _words(*lines: str) -> list[str]:
    return [word for line in lines for word in shlex.split(line)]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
