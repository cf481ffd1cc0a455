from slime_core.config.cluster import ClusterConfig
from slime_core.config.sync import WeightSyncConfig
from slime_sglang.weights.select import senders
from slime_sglang.weights.session import EngineTarget


def test_memory_is_handed_over_by_the_first_rank_of_each_machine_and_all_else_by_rank_0():
    cluster = ClusterConfig(actor_num_nodes=2, actor_num_gpus_per_node=8)
    engines = [EngineTarget(f"http://e{n}", machine=n // 2) for n in range(4)]
    by_memory = senders(WeightSyncConfig(update_weight_transport="tensor"), cluster, engines)
    assert by_memory == {0: tuple(engines[:2]), 8: tuple(engines[2:])}
    one = senders(WeightSyncConfig(update_weight_transport="tensor"), cluster, engines[3:])
    assert one == {8: (engines[3],)}
    by_files = senders(WeightSyncConfig(update_weight_transport="disk"), cluster, engines)
    assert by_files == {0: tuple(engines)}
    assert not senders(WeightSyncConfig(update_weight_transport="nccl"), cluster, [])
