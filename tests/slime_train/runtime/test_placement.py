"""Ray's own simulation of several machines on this one."""

import functools
import os

import pytest
import ray
from ray.cluster_utils import Cluster
from slime_core.config.cluster import ClusterConfig
from slime_core.heartbeat import WorkerError
from slime_train.runtime import placement
from slime_train.runtime.cluster import Remote, gather

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Rank:
    """Says on which machine it is, and meets the others by torch's own rendezvous."""

    def machine(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def meeting_place(self) -> str:
        from slime_core.machine import meeting_place

        return meeting_place()

    def meet(self, place: str, rank: int, world: int) -> float:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
        total = torch.tensor([float(rank)])
        dist.all_reduce(total)
        dist.destroy_process_group()
        return float(total)


@pytest.fixture(scope="module")
def two_machines():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    try:
        cluster.add_node(num_cpus=2, num_gpus=0)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ranks_are_on_as_many_machines_as_asked_and_meet_over_the_network(two_machines):
    import sys

    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[Rank.__module__])
    config = ClusterConfig(device="cpu", actor_num_nodes=2, actor_num_gpus_per_node=2)
    places = placement.machines(config)
    env = {"OMP_NUM_THREADS": "1"}
    ranks = [
        Remote(f"rank {rank}", functools.partial(Rank), place=places[rank // 2], env=env)
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
    with pytest.raises(WorkerError, match="--actor-num-nodes 3: the Ray cluster has fewer"):
        placement.machines(config)


def test_with_one_machine_ray_decides():
    assert placement.machines(ClusterConfig()) == [{}]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
