import pytest
from slime_core.data.conversation import TokenLog
from slime_core.errors import DataError
from slime_core.types import Sample
from slime_testing.chars import CharTokenizer


def test_a_log_becomes_a_sample_in_which_only_the_model_is_trained() -> None:
    log = TokenLog((1, 2)).add_model([3, 4], [-0.1, -0.2], "7")
    log = log.add_environment([5, 6, 7]).add_model([8], [-0.3], "8")
    sample = Sample()
    log.write_into(sample)
    sample.validate()
    assert sample.tokens == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (sample.prompt_length, sample.response_length) == (2, 6)
    assert sample.loss_mask == [1, 1, 0, 0, 0, 1]
    assert sample.rollout_log_probs == [-0.1, -0.2, 0.0, 0.0, 0.0, -0.3]
    assert sample.token_versions == [7, 7, -1, -1, -1, 8]
    assert sample.weight_versions == ["7", "8"]


def test_turns_that_the_same_weights_wrote_have_one_version() -> None:
    log = TokenLog((1,))
    for version in ("7", "7", "8", "7"):
        log = log.add_model([2], [-0.1], version).add_environment([3])
    sample = Sample()
    log.write_into(sample)
    assert sample.weight_versions == ["7", "8", "7"]


def test_branches_share_what_they_have_in_common_and_do_not_disturb_each_other() -> None:
    trunk = TokenLog((1,)).add_model([2], [-0.5], "1")
    left, right = trunk.add_environment([3]), trunk.add_environment([4, 5])
    assert (trunk.tokens, left.tokens, right.tokens) == ([1, 2], [1, 2, 3], [1, 2, 4, 5])
    assert left.spans[0] is right.spans[0]


def test_a_shared_beginning_is_trained_on_in_one_branch_only() -> None:
    log = TokenLog((1,)).add_model([2], [-0.5], "1").add_environment([3]).add_model([4], [-0.7])
    sample = Sample()
    log.untrained(2).write_into(sample)
    assert sample.loss_mask == [0, 0, 1]
    assert sample.rollout_log_probs == [-0.5, 0.0, -0.7]
    assert sample.token_versions == [1, -1, -1]


def test_a_turn_without_all_its_log_probs_is_refused() -> None:
    with pytest.raises(DataError, match="2 tokens of a turn came with 1 log-prob"):
        TokenLog(()).add_model([1, 2], [-0.1])


def test_text_is_what_the_tokens_of_the_response_say() -> None:
    log = TokenLog((65,)).add_model([66, 67], [-0.1, -0.1]).add_environment([68])
    assert log.text(CharTokenizer()) == "BCD"
