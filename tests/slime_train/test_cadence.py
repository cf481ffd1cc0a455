"""When a run does the periodic things, as its flags say."""

from pathlib import Path

import pytest
from slime_core.checkpoints.resume import Origin, Resume
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.evaluation import EvalConfig
from slime_core.files.staging import staged
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


def test_prompts_left_out_after_epochs_were_counted_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two epochs of 20 rows are 8 iterations of 5: with 15 prompts left, 2.67 passes."""
    raw = (
        f"--hf-checkpoint {root}/model --prompt-data {root}/prompts.jsonl --rm-type exact_match "
        f"--rollout-batch-size 5 --n-samples-per-prompt 2 --output-dir {root}/out --num-epoch 2"
    )
    given = read_sources(raw.split())
    config = resolve(given, gather(given)).config
    assert cadence(config, 0, FACTS).last == 8
    assert caplog.messages == []
    assert cadence(config, 0, RolloutFacts(num_prompts=15, engines=())).last == 8
    (told,) = caplog.messages
    assert "8 iterations of 5 prompts pass over the 15 prompts that there are 2.67 times" in told


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


@pytest.mark.parametrize("flag", ["--save", "--save-hf"])
def test_a_directory_without_an_interval_has_the_last_iteration_saved(
    root: Path, flag: str
) -> None:
    line = f"--num-rollout 4 {flag} {root}/saved"
    found = cadence_of(root, line)
    assert [i for i in range(4) if found.save_due(i)] == [3]
    found = cadence_of(root, f"--num-epoch 3 {flag} {root}/saved", first=7)
    assert [i for i in range(7, 12) if found.save_due(i)] == [11]
    assert cadence_of(root, f"{line} --save-interval 3").save_every == 3


def test_a_run_that_saved_once_is_over_and_goes_on_with_more_iterations(
    root: Path, tmp_path: Path
) -> None:
    line = f"--num-rollout {{}} --save {tmp_path}/saved"
    command = Resume(CheckpointConfig(save=f"{tmp_path}/saved"), None, lambda text: None)
    begun = cadence_of(root, line.format(4))
    for iteration in range(begun.first, begun.last):
        assert not command.is_over(4, EvalConfig())  # what is killed before the end begins again
        if begun.save_due(iteration):
            with staged(tmp_path / "saved", iteration) as directory:
                (directory / "weights").touch()
    assert command.is_over(4, EvalConfig())
    assert command.find() == Origin(tmp_path / "saved" / "iter_0000003", own=True)
    resumed = cadence_of(root, line.format(6), first=4)
    assert [i for i in range(4, 6) if resumed.save_due(i)] == [5]


def test_without_a_directory_nothing_is_saved(root: Path) -> None:
    found = cadence_of(root, "--num-rollout 4 --save-interval 2")
    assert not any(found.save_due(i) for i in range(4))


def test_sets_without_an_interval_are_evaluated_before_training_and_after_the_last(
    root: Path,
) -> None:
    found = cadence_of(root, f"--num-rollout 4 --eval-prompt-data held {root}/prompts.jsonl")
    assert found.eval_before_training
    assert [i for i in range(4) if found.eval_due(i)] == [3]


def test_epochs_are_counted_in_batches_of_prompts(root: Path) -> None:
    found = cadence_of(root, "--num-epoch 3 --save {root}/saved --save-interval 5", first=2)
    assert (found.first, found.last) == (2, 12)
    assert [i for i in range(2, 12) if found.save_due(i)] == [4, 9, 11]
    assert cadence_of(root, "--num-rollout 9 --start-rollout-id 7", first=2).first == 7


def test_an_evaluation_of_a_checkpoint_has_no_iterations_to_go(root: Path) -> None:
    made = cadence_of(root, "--num-rollout 0 --eval-prompt-data t {root}/prompts.jsonl", first=8)
    assert (made.first, made.last) == (8, 8)
    assert made.eval_before_training
