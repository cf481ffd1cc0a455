"""The quickstart's task is learned on a GPU, which trainer and engine take in turns."""

import os
from pathlib import Path

import pytest
import torch
from slime_testing.runs import run
from slime_train.quickstart import commands
from slime_train.quickstart.model import VOCAB_SIZE, qwen3_config, write_qwen3
from slime_train.quickstart.report import read_curves
from slime_train.quickstart.task import write_task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WORDS = ("system", "user", "assistant", "\\boxed{")
ON_GPU = ("--bf16", "--use-distributed-optimizer", "--num-gpus-per-node", 1)


def write_model(directory: Path) -> Path:
    """The quickstart's, with heads as wide as the kernels of GPUs take them."""
    config = qwen3_config(
        hidden_size=128,
        intermediate_size=512,
        head_dim=64,
        tie_word_embeddings=True,
        vocab_size=VOCAB_SIZE + len(WORDS),
    )
    return write_qwen3(directory, config, seed=0, init_std=0.05, words=WORDS)


def test_reinforcement_on_a_gpu_improves_on_the_warm_up(tmp_path: Path) -> None:
    model, task = write_model(tmp_path / "model"), write_task(tmp_path / "data", seed=0)
    more = os.environ.get("SLIME_TEST_ENGINE_FLAGS", "").split()
    warm_up, output = tmp_path / "warm-up", tmp_path / "grpo"
    run(*commands.warm_up(model, task, warm_up, seed=0)[1:], *ON_GPU, *more)
    run(
        *commands.reinforce(warm_up / "hf", task, output, seed=0)[1:],
        *ON_GPU, "--num-rollout", 20, "--sglang-mem-fraction-static", 0.3, *more,
    )  # fmt: skip
    curves = read_curves(output / "metrics.jsonl", commands.EVALUATION_SET)
    print(curves.accuracy)
    outcome = curves.outcome()
    assert outcome.accuracy_before > 0.2, "the warm-up has something to go on from"
    assert outcome.accuracy_after > outcome.accuracy_before + 0.2
