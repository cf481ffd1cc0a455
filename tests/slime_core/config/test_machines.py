"""Which ranks and engines are on which machine, by hand."""

import pytest
from slime_core.config.cluster import ClusterConfig
from slime_core.config.machines import Machine, Room, machines, rooms
from slime_core.errors import ConfigError


def on_gpus(nodes: int, each: int, rollout: int, per_engine: int = 1, **more: bool | int):
    return ClusterConfig(
        device="cuda",
        actor_num_nodes=nodes,
        actor_num_gpus_per_node=each,
        rollout_num_gpus=rollout,
        rollout_num_gpus_per_engine=per_engine,
        **more,  # pyright: ignore[reportArgumentType]
    )


PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


def test_colocated_engines_are_on_the_trainers_gpus_of_every_machine():
    assert machines(on_gpus(2, 8, 16, 2, colocate=True)) == (Machine(8, PAIRS, 8),) * 2
    assert machines(on_gpus(2, 4, 8, 4, colocate=True)) == (Machine(4, ((0, 1, 2, 3),), 4),) * 2


def test_fewer_engines_than_there_is_room_for_fill_one_machine_after_the_other():
    found = machines(on_gpus(2, 8, 12, 2, colocate=True))
    assert found == (Machine(8, PAIRS, 8), Machine(8, PAIRS[:2], 8))


def test_engines_of_their_own_are_on_what_the_trainer_leaves_and_then_on_further_machines():
    assert machines(on_gpus(1, 4, 4, 2)) == (Machine(4, PAIRS[2:], 8),)
    assert machines(on_gpus(1, 8, 8, 4)) == (
        Machine(8, (), 8),
        Machine(0, ((0, 1, 2, 3), (4, 5, 6, 7)), 8),
    )
    assert machines(on_gpus(2, 5, 8, 2)) == (
        Machine(5, ((5, 6),), 7),
        Machine(5, ((5, 6),), 7),
        Machine(0, PAIRS[:2], 4),
    )
    smaller = machines(on_gpus(1, 4, 4, 2, num_gpus_per_node=4))
    assert smaller == (Machine(4, (), 4), Machine(0, PAIRS[:2], 4))


def test_a_single_machine_has_the_trainers_gpus_and_those_of_engines_beside_it():
    def taken(cluster: ClusterConfig, *, trains: bool = True) -> int:
        (only,) = machines(cluster, trains=trains)
        return only.num_gpus

    assert taken(on_gpus(1, 4, 2)) == 6
    assert taken(on_gpus(1, 4, 2), trains=False) == 2
    assert taken(on_gpus(1, 4, 8, colocate=True)) == 8
    assert taken(ClusterConfig(device="cpu", rollout_num_gpus=2)) == 0


def test_engines_that_nobody_starts_and_a_trainer_that_is_not_there_have_no_place():
    assert machines(on_gpus(2, 4, 4), generates=False) == (Machine(4, (), 4),) * 2
    alone = machines(on_gpus(1, 4, 4, 2), trains=False)
    assert alone == (Machine(0, PAIRS[:2], 4),)
    two = ClusterConfig(device="cpu", actor_num_nodes=2, rollout_num_engines=1)
    assert machines(two, trains=False) == (Machine(0, ((),), 0),)
    assert machines(on_gpus(1, 4, 0), trains=False) == (Machine(),)
    assert machines(on_gpus(1, 8, 16, 8), trains=False) == (Machine(0, (tuple(range(8)),), 8),) * 2


@pytest.mark.parametrize(
    ("cluster", "complaint"),
    [
        (on_gpus(2, 8, 16, 16, colocate=True), "16: an engine runs within one machine, of which"),
        (on_gpus(2, 8, 16, 16), r"at most 8 GPUs are used \(--num-gpus-per-node 8\): give smaller"),
        (on_gpus(2, 6, 12, 4, colocate=True), "have room for 8, as an engine of --rollout-num-gp"),
        (on_gpus(2, 4, 16, 4, colocate=True), "--rollout-num-gpus 16: 2 machines with 4 GPUs"),
    ],
)
def test_engines_that_no_machine_has_room_for_are_refused_with_the_numbers(cluster, complaint):
    with pytest.raises(ConfigError, match=complaint):
        machines(cluster)


def test_on_cpus_every_machine_of_the_trainer_has_its_share_of_the_engines():
    def shares(nodes: int, engines: int) -> list[int]:
        cluster = ClusterConfig(
            device="cpu",
            actor_num_nodes=nodes,
            actor_num_gpus_per_node=2,
            rollout_num_engines=engines,
        )
        found = machines(cluster)
        assert [machine.num_ranks for machine in found] == [2] * nodes
        return [len(machine.engines) for machine in found]

    assert shares(1, 3) == [3]
    assert shares(2, 1) == [1, 0]
    assert shares(2, 4) == [2, 2]
    assert shares(3, 4) == [2, 1, 1]


def test_room_is_one_cpu_for_each_process_of_ours_and_the_gpus_that_are_used():
    where = machines(on_gpus(2, 8, 16, 2, colocate=True))
    assert rooms(where, 1) == (Room(10, 8), Room(9, 8))  # ranks, a launcher, the rollout worker
    assert rooms(where, 2)[1] == Room(17, 8)
    assert rooms(machines(on_gpus(1, 4, 2)), 1) == (Room(5, 6),)
    assert str(Room(9, 8)) == "8 free GPUs and 9 free CPUs"
    assert str(Room(2, 0)) == "2 free CPUs"
