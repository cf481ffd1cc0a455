"""When a run does the periodic things, as its flags say."""

from pathlib import Path

import pytest
from slime_testing.tiny import make_qwen3
from slime_train.compose import cadence
from slime_train.facts import gather
from slime_train.loop import Cadence
from slime_train.resolve import resolve
from slime_train.runtime.rollouts import RolloutFacts
from slime_train.sources import read_sources

FACTS = RolloutFacts(num_prompts=20, engines=())
FUNCTION = """
def generate_rollout(args, rollout_id, data_source, evaluation=False):
    return {"set": {"rewards": [1.0]}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    make_qwen3(root / "model")
    (root / "prompts.jsonl").write_text('{"prompt": "1+2=", "label": "3"}\n' * 20)
    (root / "my_eval.py").write_text(FUNCTION)
    return root


def cadence_of(root: Path, flags: str, first: int = 0) -> Cadence:
    common = (
        f"--hf-checkpoint {root}/model --prompt-data {root}/prompts.jsonl --rm-type exact_match"
        f" --rollout-batch-size 5 --n-samples-per-prompt 2 --output-dir {root}/out "
    )
    raw = read_sources((common + flags.format(root=root)).split())
    return cadence(resolve(raw, gather(raw)).config, first, FACTS)


@pytest.mark.parametrize(
    "source",
    ["--eval-prompt-data held {root}/prompts.jsonl", "--eval-function-path {root}/my_eval.py"],
)
def test_whatever_there_is_to_evaluate_is_evaluated(root: Path, source: str) -> None:
    found = cadence_of(root, f"--num-rollout 4 --eval-interval 2 {source}")
    assert found.eval_before_training
    assert [i for i in range(4) if found.eval_due(i)] == [1, 3]
    assert not cadence_of(
        root, f"--num-rollout 4 --skip-eval-before-train {source}"
    ).eval_before_training


def test_without_anything_to_evaluate_nothing_is_evaluated(root: Path) -> None:
    found = cadence_of(root, "--num-rollout 4 --eval-interval 2")
    assert not found.eval_before_training
    assert not any(found.eval_due(i) for i in range(4))


def test_epochs_are_counted_in_batches_of_prompts(root: Path) -> None:
    found = cadence_of(root, "--num-epoch 3 --save {root}/saved --save-interval 5", first=2)
    assert (found.first, found.last) == (2, 12)
    assert [i for i in range(2, 12) if found.save_due(i)] == [4, 9, 11]
    assert cadence_of(root, "--num-rollout 9 --start-rollout-id 7", first=2).first == 7
