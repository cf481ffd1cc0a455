import pytest
from slime_core.config.data import DataConfig
from slime_core.config.rollout import RolloutConfig
from slime_core.errors import ConfigError
from slime_core.iterations import num_iterations


@pytest.mark.parametrize(
    ("given", "epochs", "expected"),
    [
        (7, 2, 7),
        (0, None, 0),  # only evaluates
        (None, 3, 7),  # 3 * 10 prompts, 4 at a time: 2 are left out
        (None, 1, 2),
    ],
)
def test_a_run_has_the_iterations_it_was_given_or_those_of_its_epochs(given, epochs, expected):
    rollout = RolloutConfig(num_rollout=given, rollout_batch_size=4)
    assert num_iterations(rollout, DataConfig(num_epoch=epochs), 10) == expected


def test_fewer_prompts_than_a_batch_make_one_iteration():
    assert num_iterations(RolloutConfig(rollout_batch_size=16), DataConfig(num_epoch=1), 10) == 1


def test_a_run_without_a_length_is_refused():
    with pytest.raises(ConfigError, match="give --num-rollout or --num-epoch"):
        num_iterations(RolloutConfig(), DataConfig(), 10)
