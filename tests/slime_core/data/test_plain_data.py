"""What a checkpoint is given is a copy, and can be read back."""

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from slime_core.data.plain_data import plain_copy
from slime_core.errors import DataError


def test_every_kind_of_plain_data_can_be_read_back(tmp_path):
    state: dict[Any, Any] = {
        "values": [None, True, 1, 2.5, 1j, "a", b"b"],
        3: {"nested": [({"deep": 1},), set("x")], "ordered": OrderedDict(a=1)},
        "counts": Counter("aab"),
        "tensor": torch.arange(3),
        (1, "key"): (1, 2),
    }
    copy = plain_copy(state, "state")
    torch.save(copy, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(read.pop("tensor"), state.pop("tensor"))
    assert read == state
    assert type(read[3]["ordered"]) is OrderedDict
    assert type(read["counts"]) is Counter


def test_numpys_values_become_pythons():
    state = {
        np.int64(1): np.float32(0.5),
        "all": [np.bool_(True), np.str_("a"), np.float64(2.0), np.arange(4).reshape(2, 2)],
        "objects": np.array([np.int8(1), "b"], dtype=object),
    }
    copy = plain_copy(state, "state")
    assert copy == {1: 0.5, "all": [True, "a", 2.0, [[0, 1], [2, 3]]], "objects": [1, "b"]}
    assert [type(value) for value in copy["all"]] == [bool, str, float, list]
    assert [type(key) for key in copy] == [int, str, str]


def test_nothing_is_shared_with_the_original():
    state = {"plain": [1, 2], "nested": [[1], {"a": {2}}], "tensor": torch.zeros(2)}
    copy = plain_copy(state, "state")
    state["plain"].append(3)
    state["nested"][0].append(2)
    state["nested"][1]["a"].add(3)
    state["tensor"][0] = 1
    assert (copy["plain"], copy["nested"]) == ([1, 2], [[1], {"a": {2}}])
    assert copy["tensor"].tolist() == [0, 0]


class Judge:
    pass


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Judge(), r"\.Judge"),
        (np.datetime64("2026-01-01", "s"), r"datetime\.datetime"),
        (np.longdouble(1), r"numpy\.longdouble"),
        (defaultdict(int), r"collections\.defaultdict"),
        (range(3), r"builtins\.range"),
    ],
)
def test_anything_else_is_refused_by_its_place_and_class(value, kind):
    state = {"groups": [{"metadata": {"turns": (1, [value])}}]}
    told = rf"^rollouts: \['groups'\]\[0\]\['metadata'\]\['turns'\]\[1\]\[0\] is a .*{kind}"
    with pytest.raises(DataError, match=told):
        plain_copy(state, "rollouts: ")
    with pytest.raises(DataError, match=r"position\[.*\] is a"):
        plain_copy({(value if value.__hash__ else 0): value}, "position")
