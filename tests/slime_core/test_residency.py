from itertools import count

import pytest
from slime_core.config.cluster import ClusterConfig
from slime_core.residency import SideBySide, TakingTurns


class Side:
    def __init__(self, name, calls, host_bytes=None):
        self.name, self.calls, self.host_bytes = name, calls, host_bytes

    def hold(self, what):
        self.calls.append(f"{self.name} {what}")
        return self.host_bytes


def turns(*, trainer=True, engines=True):
    calls, ticks = [], count()
    return calls, TakingTurns(
        Side("trainer", calls, 7.0) if trainer else None,
        Side("engines", calls) if engines else None,
        clock=lambda: float(next(ticks)),
    )


def iteration(calls, room, *, publishes=True):
    with room.training(publishes=publishes):
        calls.append("train")
    if publishes:
        with room.publishing():
            calls.append("publish")
    calls.append("generate")


def test_whoever_gives_memory_back_does_so_before_the_other_takes_it():
    calls, room = turns()
    with room.publishing():
        calls.append("publish")
    calls.append("generate")
    iteration(calls, room)
    assert calls == [
        "engines weights", "trainer weights", "publish",
        "trainer nothing", "engines everything", "generate",
        "engines nothing", "trainer everything", "train",
        "trainer weights", "engines weights", "publish",
        "trainer nothing", "engines everything", "generate",
    ]  # fmt: skip


def test_without_a_publish_the_engines_have_their_memory_back_after_training():
    calls, room = turns()
    iteration(calls, room, publishes=False)
    assert calls[-3:] == ["trainer nothing", "engines everything", "generate"]


def test_only_what_the_trainer_took_to_host_memory_is_told_as_its_bytes():
    _, room = turns()
    with room.training():
        pass
    assert room.spent() == {"perf/release_s": 1.0, "perf/onload_s": 1.0}


def test_a_side_that_is_not_asked_keeps_what_it_holds():
    calls, room = turns(trainer=False)
    iteration(calls, room)
    assert not [call for call in calls if call.startswith("trainer")]
    assert "engines nothing" in calls
    calls, room = turns(engines=False)
    iteration(calls, room)
    assert not [call for call in calls if call.startswith("engines")]


def test_what_moving_costs_is_told_once():
    calls, room = turns()
    iteration(calls, room)
    assert room.spent() == {
        "perf/release_s": 1.0,
        "perf/onload_s": 1.0,
        "perf/offload_s": 2.0,
        "perf/resume_s": 2.0,
        "perf/offload_host_bytes": 7.0,
    }
    assert room.spent() == {}


def test_side_by_side_nothing_moves():
    room = SideBySide()
    with room.training(publishes=True), room.publishing():
        assert room.spent() == {}


@pytest.mark.parametrize(
    ("offload_train", "offload_rollout", "moved"),
    [
        (True, True, ["engines nothing", "trainer everything"]),
        (True, False, ["trainer everything"]),
        (False, True, ["engines nothing"]),
    ],
)
def test_the_sides_that_are_told_to_offload_move(offload_train, offload_rollout, moved):
    calls = []
    cluster = ClusterConfig(offload_train=offload_train, offload_rollout=offload_rollout)
    room = TakingTurns.of(cluster, Side("trainer", calls), Side("engines", calls))
    with room.training():
        assert calls == moved
