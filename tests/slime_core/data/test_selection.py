from types import SimpleNamespace

import pytest
from slime_core.data import selection
from slime_core.data.selection import as_select, take
from slime_core.errors import PluginError
from slime_core.hooks import adapters as hooks
from slime_core.types import Sample, SampleGroup


def groups(*metadata):
    return [[Sample(group_index=i, metadata=each)] * 2 for i, each in enumerate(metadata)]


def indices(found):
    return [group[0].group_index for group in found]


def choose(select, buffer, number, **args):
    return indices(select(SimpleNamespace(**args), None, buffer, number))


def test_priority_takes_the_highest_and_of_equals_the_oldest():
    buffer = groups({"priority": 1}, {}, {"priority": 3.5}, {"priority": 1}, {"priority": -1})
    assert choose(selection.priority, buffer, 4) == [2, 0, 3, 1]
    other = groups({"hard": 0}, {"hard": 9})
    assert choose(selection.priority, other, 1, buffer_key="hard") == [1]


def test_stratified_takes_turns_by_source():
    sources = groups(*({"source": source} for source in "aaabbc"))
    assert choose(selection.stratified, sources, 5) == [0, 3, 5, 1, 4]
    assert choose(
        selection.stratified, groups({"k": 1}, {"k": 1}, {"k": 2}), 2, buffer_key="k"
    ) == [
        0,
        2,
    ]


def test_oldest_first_is_a_selection_like_any():
    assert choose(selection.oldest_first, groups({}, {}, {}), 2) == [0, 1]


def seeds(args, buffer, num_samples):
    return [buffer[1]][:num_samples]


def upstream(args, rollout_id, buffer, num_samples):
    taken = [buffer[1]]
    del buffer[1]
    return taken


@pytest.mark.parametrize("fn", [seeds, upstream, lambda buffer, num_samples: [buffer[1]]])
def test_every_form_is_called_and_what_it_returns_leaves_the_buffer(fn):
    buffer = groups({}, {}, {})
    taken = take(as_select(fn, "f"), buffer, 1, args=None, rollout_id=4)
    assert (indices(taken), indices(buffer)) == ([1], [0, 2])


@pytest.mark.parametrize(("waiting", "wanted"), [([], 1), ([{}], 0)])
def test_nothing_is_asked_where_nothing_waits_or_is_wanted(waiting, wanted):
    def select(*_):
        raise AssertionError

    assert take(select, groups(*waiting), wanted, args=None, rollout_id=None) == []


@pytest.mark.parametrize(
    ("wrong", "returned"),
    [
        (lambda b, n: [*b, *b], "4 groups for 2"),
        (lambda b, n: groups({}), "1 groups for 2"),
        (lambda b, n: [b[0], b[0]], "2 groups for 2"),
        (lambda b, n: b.clear(), "None"),
    ],
)
def test_a_selection_that_returns_something_else_is_refused_by_its_name(wrong, returned):
    told = f"^buffer filter 'f' returned {returned}; it must return different groups of the buffer"
    with pytest.raises(PluginError, match=told):
        take(as_select(wrong, "f"), groups({}, {}), 2, args=None, rollout_id=None)


def test_a_selection_that_cannot_be_called_is_refused():
    with pytest.raises(PluginError, match=r"must be callable as f\(args, rollout_id, buffer"):
        as_select(lambda: [], "f")


def test_shipped_selections_are_named_on_the_command_line():
    waiting = [SampleGroup(i, tuple(g)) for i, g in enumerate(groups({}, {"priority": 2}))]
    select = hooks.buffer_filter("slime_core.data.selection.priority", {"buffer_key": None})
    assert [group.group_index for group in select(waiting, 1)] == [1]
    assert [group.group_index for group in waiting] == [0]
