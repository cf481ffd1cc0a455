"""A task so small that it can be run again for every fault."""

import subprocess
import sys
from pathlib import Path

REWARD = '''"""A reward that a model with random weights gets half of the time."""


def even(response, label, metadata):
    """Whether the answer has an even number of characters that are no digits."""
    return float(sum(not c.isdigit() for c in response) % 2 == 0)
'''
NUM_ITERATIONS = 4
WATCHED = (
    *("--rollout-health-check-interval", "2", "--rollout-health-check-timeout", "20"),
    *("--heartbeat-timeout-s", "30"),
)
"""Added to it where processes are lost: it is soon known."""
_QUICKSTART = "slime-quickstart"
_MAKE_S = 300.0


def small_task(directory: Path, num_iterations: int = NUM_ITERATIONS) -> tuple[str, ...]:
    """Make model, data and reward in ``directory`` once; arguments of slime-train for them."""
    if not (directory / "data" / "train.jsonl").is_file():
        command = Path(sys.executable).with_name(_QUICKSTART)
        words = [str(command), "--output-dir", str(directory), "--stop-after", "data"]
        subprocess.run(words, check=True, timeout=_MAKE_S, stdout=subprocess.DEVNULL)
        (directory / "reward.py").write_text(REWARD, encoding="utf-8")
    settings = f"""--prompt-data {directory}/data/train.jsonl --input-key prompt --label-key label
        --hf-checkpoint {directory}/model --apply-chat-template --rollout-shuffle
        --custom-rm-path {directory}/reward.py:even --num-data-workers 1
        --streaming-data --num-rollout {num_iterations} --rollout-batch-size 32
        --n-samples-per-prompt 2 --global-batch-size 64 --rollout-max-response-len 16
        --use-dynamic-batch-size --max-tokens-per-gpu 4096 --lr 1e-3 --device cpu"""
    return tuple(settings.split())
