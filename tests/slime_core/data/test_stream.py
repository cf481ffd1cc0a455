import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slime_core.data.buffer import restarted
from slime_core.data.prompts import Prompt
from slime_core.data.stream import PromptStream
from slime_core.errors import DataError
from slime_core.types import Status


def make_stream(size=5, n=2, *, shuffle=True, seed=7, **options):
    prompts = [Prompt(str(i), str(i), {"row": i}, (i, i)) for i in range(size)]
    return PromptStream(prompts, n, shuffle=shuffle, seed=seed, **options)


def names(groups):
    return [group.samples[0].prompt for group in groups]


def test_groups_are_numbered_copies_of_a_prompt():
    first, second = make_stream(shuffle=False).take(2)
    assert [s.index for s in first.samples + second.samples] == [0, 1, 2, 3]
    assert [s.rollout_id for s in second.samples] == [2, 3]
    assert [s.group_index for s in second.samples] == [1, 1]
    assert second.samples[0].tokens == [1, 1]
    second.samples[0].metadata["row"] = "changed"
    assert second.samples[1].metadata == {"row": 1}


def test_one_take_may_span_several_epochs():
    stream = make_stream(size=3)
    taken = names(stream.take(10))
    epochs = [taken[0:3], taken[3:6], taken[6:9]]
    assert all(sorted(epoch) == ["0", "1", "2"] for epoch in epochs)
    assert stream.epoch == 3


def test_epochs_differ_and_seeds_decide():
    one, two, other = make_stream(20), make_stream(20), make_stream(20, seed=8)
    a, b = names(one.take(20)), names(one.take(20))
    assert a != b
    assert names(two.take(40)) == a + b
    assert names(other.take(20)) != a


@given(st.lists(st.integers(0, 7), max_size=6), st.integers(0, 6), st.booleans())
def test_a_restored_stream_goes_on_as_if_nothing_had_happened(takes, after, shuffle):
    stream = make_stream(shuffle=shuffle)
    for number in takes:
        stream.take(number)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = make_stream(shuffle=shuffle)
    resumed.load_state_dict(state)
    assert stream.take(after) == resumed.take(after)


def test_unfinished_groups_come_first_and_survive_a_checkpoint():
    stream = make_stream()
    group = replace(stream.take(3)[1], baseline=0.5)
    group.samples[0].status = Status.ABORTED
    group.samples[0].response = "half"
    group.samples[0].note = "attached by a plugin"
    stream.give_back([group])
    resumed = make_stream()
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert resumed.num_waiting == 1
    (first, second) = resumed.take(2)
    assert first == group
    assert first.samples[0].status is Status.ABORTED
    assert first.samples[0].note == "attached by a plugin"
    assert second == stream.take(2)[1]


def test_no_group_that_waits_is_given_out_twice():
    stream = make_stream(shuffle=False)
    stream.give_back(stream.take(3))
    assert [names(stream.take(2)), names(stream.take(2))] == [["0", "1"], ["2", "3"]]


def test_a_selection_may_choose_from_the_buffer():
    def newest(waiting, num_groups):
        return [waiting.pop() for _ in range(min(num_groups, len(waiting)))]

    stream = make_stream(select=newest)
    groups = stream.take(2)
    stream.give_back(groups)
    assert stream.take(2) == groups[::-1]


def test_a_restarted_group_has_only_its_prompt():
    (group,) = make_stream(n=1, shuffle=False).take(1)
    sample = group.samples[0]
    sample.tokens += [5, 6]
    sample.response_length, sample.status, sample.response = 2, Status.ABORTED, "ab"
    sample.metadata["error"] = "of the last try"
    (again,) = restarted(group).samples
    assert again.metadata == {"row": 0}
    assert (again.tokens, again.response, again.status) == ([0, 0], "", Status.PENDING)
    assert (again.index, again.label) == (sample.index, sample.label)


def test_a_source_comes_as_often_as_it_weighs_and_of_a_fraction_other_rows_in_every_epoch():
    prompts = [Prompt(str(i), source="a.jsonl*1.5") for i in range(4)]
    stream = PromptStream([*prompts, Prompt("b", source="b.jsonl")], 1)
    assert names(stream.take(14)) == [*"012313b", *"012302b"]
    assert len(stream) == 7


def test_prompts_loaded_where_they_were_streamed_begin_the_epoch_again(caplog):
    stream = make_stream(shuffle=False)
    stream.take(2)
    state = {**stream.state_dict(), "position": {"epoch": 3}}
    for name in ("epoch", "offset", "num_prompts"):
        del state[name]
    resumed = make_stream(shuffle=False)
    resumed.load_state_dict(state)
    assert "stream had streamed prompts, this one has 5" in caplog.text
    assert (resumed.epoch, names(resumed.take(2))) == (3, ["0", "1"])


def test_no_prompts_no_stream():
    with pytest.raises(DataError, match="at least one prompt"):
        make_stream(size=0)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_a_run_that_goes_on_with_other_group_sizes_gives_no_number_twice(before, after, caplog):
    stream = make_stream(n=before)
    groups = stream.take(3)
    stream.give_back(groups[1:])
    resumed = make_stream(n=after)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    taken = [*groups[:1], *resumed.take(6)]
    indices = [sample.index for group in taken for sample in group.samples]
    assert len(indices) == len(set(indices)) == 3 * before + 4 * after
    assert [group.group_index for group in taken] == list(range(7))
    assert f"2 unfinished groups have {before} samples each, and --n-samples-pe" in caplog.text


def test_a_checkpoint_from_before_samples_were_counted_goes_on():
    stream = make_stream(n=2)
    stream.take(3)
    state = stream.state_dict()
    del state["num_samples"]
    resumed = make_stream(n=2)
    resumed.load_state_dict(state)
    assert [sample.index for sample in resumed.take(1)[0].samples] == [6, 7]
