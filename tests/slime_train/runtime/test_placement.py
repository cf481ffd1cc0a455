"""Ray's own simulation of several machines on this one."""

import functools
import os
import sys

import cloudpickle
import pytest
import ray
from ray.cluster_utils import Cluster
from slime_core.config.cluster import ClusterConfig
from slime_core.config.machines import machines, rooms
from slime_core.processes.heartbeat import WorkerError
from slime_train.runtime import placement
from slime_train.runtime.cluster import Remote, gather

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Rank:
    """Says on which machine it is, and meets the others by torch's own rendezvous."""

    def machine(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def gpus(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def meeting_place(self) -> str:
        from slime_core.processes.this_machine import meeting_place

        return meeting_place()

    def meet(self, place: str, rank: int, world: int) -> float:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
        total = torch.tensor([float(rank)])
        dist.all_reduce(total)
        dist.destroy_process_group()
        return float(total)


def reserve(config: ClusterConfig, num_models: int):
    return placement.reserve(config, rooms(machines(config), num_models))


@pytest.fixture(scope="module")
def two_machines():
    each = {"num_cpus": 16, "num_gpus": 5}  # groups of earlier tests stay reserved
    cluster = Cluster(initialize_head=True, head_node_args=each)
    try:
        cluster.add_node(**each)
        ray.init(address=cluster.address, log_to_driver=False)
        cloudpickle.register_pickle_by_value(sys.modules[Rank.__module__])
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ranks_are_on_as_many_machines_as_asked_and_meet_over_the_network(two_machines):
    config = ClusterConfig(device="cpu", actor_num_nodes=2, actor_num_gpus_per_node=2)
    places = reserve(config, 1)
    env = {"OMP_NUM_THREADS": "1"}
    ranks = [
        Remote(f"rank {rank}", functools.partial(Rank), place=places[rank // 2].options, env=env)
        for rank in range(4)
    ]
    found = gather([rank.call("machine") for rank in ranks], 300, lambda: None)
    assert found[0] == found[1] != found[2] == found[3]
    place = ranks[0].call("meeting_place").result(60)
    assert place.startswith("tcp://")
    calls = [rank.call("meet", place, index, 4) for index, rank in enumerate(ranks)]
    assert gather(calls, 300, lambda: None) == [6.0] * 4
    for rank in ranks:
        rank.end()


def test_a_cluster_that_is_too_small_is_an_error_with_the_numbers(two_machines, monkeypatch):
    monkeypatch.setattr(placement, "_RESERVE_S", 1.0)
    config = ClusterConfig(device="cpu", actor_num_nodes=3, actor_num_gpus_per_node=1)
    with pytest.raises(WorkerError, match="not have 3 machines with 2 free CPUs; 1 free CPUs"):
        reserve(config, 1)


def test_ranks_of_several_machines_use_the_gpus_that_are_reserved_there(two_machines):
    config = ClusterConfig(device="cuda", actor_num_nodes=2, actor_num_gpus_per_node=1)
    places = reserve(config, 2)
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "0"]


@pytest.mark.parametrize("colocate", [False, True])
def test_a_run_on_one_machine_stays_there_with_gpus_of_its_own(two_machines, monkeypatch, colocate):
    monkeypatch.setenv("RAY_ADDRESS", two_machines.address)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(placement, "_RESERVE_S", 60.0)
    each = 2 if colocate else 1
    config = ClusterConfig(
        device="cuda", actor_num_gpus_per_node=each, rollout_num_gpus=each, colocate=colocate
    )
    (place,) = reserve(config, 1)
    ranks = [
        Remote(f"rank {rank}", functools.partial(Rank), place=place.options, env=place.env)
        for rank in range(3)
    ]
    found = gather([rank.call("machine") for rank in ranks], 300, lambda: None)
    assert found == [ray.get_runtime_context().get_node_id()] * 3
    mine = ranks[0].call("gpus").result(60)
    (other,) = reserve(config, 1)
    names = [*mine.split(","), *other.env["CUDA_VISIBLE_DEVICES"].split(",")]
    assert len(set(names)) == len(names) == 4
    monkeypatch.setattr(placement, "_RESERVE_S", 2.0)
    with pytest.raises(WorkerError, match=r"does not have 2 free GPUs and .* --rollout-num-gpus"):
        reserve(config, 1)


def test_a_machine_whose_ray_counts_no_gpus_is_an_error_with_the_numbers(two_machines, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_machines.address)
    monkeypatch.setattr(placement, "_RESERVE_S", 2.0)
    config = ClusterConfig(device="cuda", actor_num_gpus_per_node=6)
    with pytest.raises(WorkerError, match="does not have 6 free GPUs"):
        reserve(config, 1)


@pytest.mark.parametrize("address", ["", "local"])
def test_a_ray_of_its_own_has_one_machine_and_counts_nothing(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    (place,) = reserve(ClusterConfig(device="cuda"), 1)
    assert (place.options, place.env) == ({}, {})
    assert place.shown == os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_engines_that_do_not_fit_beside_the_trainer_have_gpus_of_another_machine(two_machines):
    config = ClusterConfig(
        device="cuda",
        actor_num_gpus_per_node=2,
        num_gpus_per_node=3,
        rollout_num_gpus=2,
        rollout_num_gpus_per_engine=2,
    )
    trainer, engines = reserve(config, 1)
    there = [
        Remote("process", functools.partial(Rank), place=place.options, env=place.env)
        for place in (trainer, engines)
    ]
    first, second = gather([process.call("machine") for process in there], 300, lambda: None)
    assert first != second
    shown = gather([process.call("gpus") for process in there], 300, lambda: None)
    assert [len(names.split(",")) for names in shown] == [2, 2]
