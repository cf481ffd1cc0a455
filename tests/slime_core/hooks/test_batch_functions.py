from pathlib import Path
from typing import Any

import pytest
import torch
from slime_core.batch import PolicySignals, Ragged, Targets
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import PluginError
from slime_core.hooks.batch_functions import custom_convert, data_postprocess
from slime_core.types import SampleGroup
from slime_testing import make_sample

FLAT = {"scale": 2.0}

CONVERT = """
def convert_samples_to_train_data(args, samples):
    return {
        "tokens": [s.tokens for s in samples],
        "response_lengths": [s.response_length for s in samples],
        "rewards": [args.scale * s.reward for s in samples],
        "raw_reward": [s.reward for s in samples],
        "rollout_ids": [0, 0, 1],
        "loss_masks": [[1] * s.response_length for s in samples],
        EXTRA
    }
"""


def groups() -> list[SampleGroup]:
    samples = [
        make_sample(length, index=i, group_index=0, rollout_id=i, reward=float(i))
        for i, length in enumerate((2, 3, 1))
    ]
    return [SampleGroup(0, tuple(samples))]


def written(path: Path, text: str) -> str:
    (path / "mine.py").write_text(text)
    return str(path / "mine.py")


def test_a_conversion_says_all_of_a_batch(tmp_path: Path) -> None:
    text = CONVERT.replace(
        "EXTRA", '"rollout_log_probs": [[-1.0] * s.response_length for s in samples]'
    )
    batch = custom_convert(written(tmp_path, text), FLAT)(groups())
    assert batch.rewards.tolist() == [0.0, 2.0, 4.0]
    assert batch.raw_rewards.tolist() == [0.0, 1.0, 2.0]
    assert batch.rollout_ids.tolist() == [0, 0, 1]
    assert batch.rollout_token_counts.tolist() == [5.0, 5.0, 1.0]
    assert batch.rollout_log_probs is not None
    assert batch.rollout_log_probs.values.tolist() == [-1.0] * 6
    assert batch.group_ids.tolist() == [0, 0, 0]


def test_columns_may_be_tensors(tmp_path: Path) -> None:
    text = "import torch\n" + CONVERT.replace("[0, 0, 1]", "torch.tensor([0, 0, 1])")
    text = text.replace("[[1] * s.response_length for s", "[torch.ones(s.response_length) for s")
    batch = custom_convert(written(tmp_path, text.replace("EXTRA", "")), FLAT)(groups())
    assert batch.rollout_ids.tolist() == [0, 0, 1]
    assert batch.rollout_token_counts.tolist() == [5.0, 5.0, 1.0]
    assert batch.loss_mask.values.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ('"rewards": None', "must return 'rewards'"),
        ('"rewards": [1.0]', "'rewards' has 1 entries for 3 samples"),
        ('"loss_masks": [[1], [1], [1]]', r"vectors of \[1, 1, 1\] entries for responses of"),
    ],
)
def test_a_column_that_does_not_fit_is_named(tmp_path: Path, extra: str, complaint: str) -> None:
    convert = custom_convert(written(tmp_path, CONVERT.replace("EXTRA", extra)), FLAT)
    with pytest.raises(PluginError, match=complaint):
        convert(groups())


def test_no_dictionary_is_no_batch(tmp_path: Path) -> None:
    convert = custom_convert(written(tmp_path, "def convert(args, samples): return samples"), FLAT)
    with pytest.raises(PluginError, match="must return a dictionary of lists"):
        convert(groups())


def postprocessed(path: Path, body: str) -> tuple[Targets, Ragged]:
    batch = collate(groups(), reward_key=None, advantage=AdvantageConfig())
    vectors = Ragged(torch.ones(6), batch.response_lengths)
    spec = written(path, f"def change(args, rollout_id, rollout_data):\n    {body}\n")
    signals, targets = PolicySignals(vectors), Targets(vectors, vectors)
    return data_postprocess(spec, FLAT)(3, batch, signals, targets)


def test_advantages_returns_and_masks_may_be_changed(tmp_path: Path) -> None:
    targets, masks = postprocessed(
        tmp_path,
        "rollout_data['advantages'][1] *= args.scale * rollout_id;"
        "rollout_data['loss_masks'][0] = [0, 1]",
    )
    assert targets.advantages.values.tolist() == [1, 1, 6, 6, 6, 1]
    assert targets.returns is not None
    assert targets.returns.values.tolist() == [1.0] * 6
    assert masks.values.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("rollout_data['advantages'].pop()", "must stay one vector per sample"),
        ("del rollout_data['returns']", "'returns'.* must stay one vector per sample"),
        ("rollout_data['loss_masks'][0] = [2, 2]", "can only mask more"),
        ("rollout_data['advantages'][1] /= 0", "'advantages'.* not finite at tokens"),
        ("rollout_data['returns'][1] -= float('inf')", "'returns'.* not finite at tokens"),
    ],
)
def test_other_shapes_other_tokens_and_infinities_are_refused(
    tmp_path: Path, body: str, complaint: str
) -> None:
    given: Any = body
    with pytest.raises(PluginError, match=complaint):
        postprocessed(tmp_path, given)
