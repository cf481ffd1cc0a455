import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slime_core.data.prompts import Prompt
from slime_core.data.stream import PromptStream
from slime_core.errors import DataError
from slime_core.prompt_ledger import PromptLedger, opened
from slime_core.types import Sample, SampleGroup, Status


def make_stream():
    return PromptStream([Prompt(str(i)) for i in range(5)], 2, shuffle=False, seed=0)


def sides(ledger):
    counts = ledger.counts()
    return counts.pop("given_out"), sum(counts.values())


def test_the_books_of_one_iteration():
    stream = make_stream()
    groups = stream.take(8)
    for sample in groups[1].samples:
        sample.status = Status.FAILED
    stream.ledger.train(groups[:4])
    stream.ledger.filter({"zero_std": 1, "surplus": 1, "never": 0})
    stream.give_back(groups[6:])
    stream.settle()
    assert stream.ledger.counts() == {
        "given_out": 8, "trained": 3, "filtered": 2, "stale": 0, "aborted": 0, "failed": 1,
        "buffered": 2, "in_flight": 0,
    }  # fmt: skip
    metrics = stream.metrics()
    assert metrics["rollout/prompts_given_out"] == 8
    assert metrics["rollout/prompts_filtered/zero_std"] == 1
    assert "rollout/prompts_filtered/never" not in metrics


def test_what_is_taken_again_is_given_out_once():
    stream = make_stream()
    stream.give_back(stream.take(3))
    stream.ledger.train(stream.take(4))
    stream.settle()
    assert sides(stream.ledger) == (4, 4)


def test_a_group_nobody_reported_is_missed():
    stream = make_stream()
    stream.ledger.train(stream.take(4)[:3])
    with pytest.raises(DataError, match=r"1 prompts are missing from the books: given_out 4, tr"):
        stream.settle()


def test_a_group_reported_twice_is_too_many():
    stream = make_stream()
    groups = stream.take(2)
    stream.ledger.train(groups)
    stream.give_back(groups)
    with pytest.raises(DataError, match="2 prompts are too many in the books"):
        stream.settle()


def test_a_group_made_behind_the_back_of_the_ledger_is_noticed():
    stream = make_stream()
    stream.ledger.train(stream.take(2))
    stream._next()
    with pytest.raises(DataError, match="made 3 groups and the ledger has 2 given out"):
        stream.settle()


def test_what_the_buffer_drops_counts_as_aborted():
    stream = PromptStream([Prompt("a")], 1, select=lambda waiting, n: waiting.clear() or [])
    stream.give_back(stream.take(3))
    stream.ledger.train(stream.take(1))
    stream.settle()
    assert stream.ledger.counts()["aborted"] == 3
    assert sides(stream.ledger) == (4, 4)


def test_groups_that_a_hook_adds_are_given_out_too():
    stream = make_stream()
    groups = stream.take(2)
    stream.ledger.train(groups)
    stream.add_samples([list(groups[0].samples), [Sample(group_index=77)]])
    stream.settle()
    stream.ledger.train(stream.take(2))
    stream.settle()
    assert sides(stream.ledger) == (4, 4)
    with pytest.raises(DataError, match="group_index"):
        stream.add_samples([[Sample()]])


def test_a_group_that_was_added_twice_waits_until_it_was_taken_twice():
    ledger, group = PromptLedger(), SampleGroup(0, (Sample(),))
    ledger.take([group])
    ledger.train([group])
    ledger.add([group, group])
    ledger.take([group])
    assert ledger.returned == [0]
    ledger.train([group])
    ledger.settle([0])
    assert ledger.counts()["buffered"] == 1


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_the_books_balance_over_any_run_with_restarts(iterations):
    stream = make_stream()
    for number, trained, filtered in iterations:
        groups = stream.take(number)
        stream.ledger.train(groups[:trained])
        stream.ledger.filter({"dull": len(groups[trained : trained + filtered])})
        stream.give_back(groups[trained + filtered :])
        stream.settle()
        state = json.loads(json.dumps(stream.state_dict()))
        stream = make_stream()
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        left, right = sides(stream.ledger)
        assert left == right


def test_books_are_opened_for_a_checkpoint_without_any():
    stream = make_stream()
    stream.give_back(stream.take(3)[1:])
    state = stream.state_dict()
    del state["ledger"]
    resumed = make_stream()
    resumed.load_state_dict(state)
    resumed.settle()
    assert resumed.ledger.counts()["trained"] == 1
    assert opened(2, [7]).counts()["buffered"] == 1


def test_groups_are_counted_not_samples():
    ledger = PromptLedger()
    group = SampleGroup(0, tuple(Sample(status=Status.COMPLETED) for _ in range(3)))
    ledger.take([group])
    ledger.train([group])
    assert sides(ledger) == (1, 1)


def test_a_function_that_only_returns_groups_has_its_books_concluded():
    stream = make_stream()
    groups = stream.take(5)
    stream.add_samples([list(groups[4].samples)])
    stream.ledger.conclude([*groups[:2], SampleGroup(99, (Sample(),))], "rollout_function")
    stream.settle()
    counts = stream.ledger.counts()
    assert (counts["given_out"], counts["trained"], counts["filtered"]) == (6, 3, 2)
    assert counts["buffered"] == 1
