"""Placement that cannot work is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import resolve
from slime_train.run_config import RunConfig
from slime_train.sources import read_sources

EXTERNAL = "--rollout-external-engine-addrs"


def config(line: str = "", **facts: Any) -> RunConfig:
    found = Facts(**{"megatron_args": ARCHITECTURE, **facts})
    return resolve(read_sources(f"{BASE} {line}".split()), found).config


def problems(line: str, **facts: Any) -> str:
    with pytest.raises(ConfigErrors) as caught:
        config(line, **facts)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("in_cluster", [False, True])
def test_one_machine_of_a_cluster_is_placed_like_a_machine_alone(in_cluster: bool):
    c = config(num_gpus=1, in_cluster=in_cluster)
    assert (c.cluster.colocate, c.megatron.world_size) == (True, 1)
    assert c.sync.update_weight_transport == "tensor"
    c = config("--colocate", num_gpus=4, in_cluster=in_cluster)
    assert (c.megatron.world_size, c.sync.update_weight_transport) == (4, "tensor")
    c = config("--rollout-num-gpus 2", num_gpus=4, in_cluster=in_cluster)
    assert (c.megatron.world_size, c.sync.update_weight_transport) == (2, "nccl")
    assert config(in_cluster=in_cluster).sync.update_weight_transport == "tensor"
    line = "--actor-num-gpus-per-node 9 --rollout-num-gpus 8 --num-gpus-per-node 32"
    assert "17 GPUs are needed" in problems(line, num_gpus=8, in_cluster=in_cluster)
    assert "no NVIDIA device is visible" in problems("--device cuda", in_cluster=in_cluster)


def test_a_bound_on_gpus_is_named_where_more_are_visible():
    line = "--actor-num-gpus-per-node 8 --rollout-num-gpus 8"
    text = problems(f"{line} --num-gpus-per-node 8", num_gpus=16)
    assert "--num-gpus-per-node 8 allows 8 of the 16 that are visible" in text
    assert "raise --num-gpus-per-node" in text
    assert config(f"{line} --num-gpus-per-node 16", num_gpus=16).megatron.world_size == 8
    assert "8 are visible" in problems(f"{line} --num-gpus-per-node 16", num_gpus=8)
    several = f"--actor-num-nodes 2 --device cuda --actor-num-gpus-per-node 9 {EXTERNAL} a:1"
    assert "is more than --num-gpus-per-node 8" in problems(several, in_cluster=True)


def test_colocated_engines_are_on_every_machine_and_get_weights_from_its_memory():
    line = "--actor-num-nodes 2 --actor-num-gpus-per-node 8 --rollout-num-gpus-per-engine 2"
    c = config(f"{line} --colocate --device cuda", in_cluster=True, num_gpus=8)
    assert (c.cluster.rollout_num_gpus, c.cluster.rollout_num_engines) == (16, 8)
    assert [len(machine.engines) for machine in c.machines] == [4, 4]
    assert c.sync.update_weight_transport == "tensor"
    assert (c.cluster.offload_train, c.cluster.offload_rollout) == (True, True)
    own = config(f"{line} --rollout-num-gpus 8 --device cuda", in_cluster=True, num_gpus=8)
    assert [len(machine.engines) for machine in own.machines] == [0, 0, 4]
    assert own.sync.update_weight_transport == "nccl"


def test_trainer_and_engines_that_do_not_fit_on_one_machine_of_a_cluster_have_one_each():
    line = "--actor-num-gpus-per-node 8 --rollout-num-gpus 8"
    c = config(line, in_cluster=True, num_gpus=8)
    assert [(m.num_ranks, len(m.engines)) for m in c.machines] == [(8, 0), (0, 8)]
    assert c.sync.update_weight_transport == "nccl"
    smaller = config(line.replace("8", "4"), in_cluster=True, num_gpus=4)
    assert [(m.num_ranks, len(m.engines)) for m in smaller.machines] == [(4, 0), (0, 4)]
    text = problems(line, num_gpus=8)
    assert "16 GPUs are needed" in text
    assert "for those of other machines set RAY_ADDRESS to a Ray cluster that" in text
    text = problems("--rollout-num-gpus 8", in_cluster=True, num_gpus=8)
    assert "9 GPUs are needed" in text
    assert "RAY_ADDRESS" not in text
    assert "trainers come onto other machines by --actor-num-nodes" in text
    assert "--actor-num-gpus-per-node, so that engines may be on other machines" in text


@pytest.mark.parametrize("more", ["", "--colocate", "--update-weights-interval 2"])
def test_an_engine_across_machines_is_refused_in_one_message_that_says_what_to_do(more: str):
    line = f"--actor-num-nodes 2 --device cuda --rollout-num-gpus-per-engine 16 {more}"
    text = problems(line, in_cluster=True, num_gpus=8)
    assert len(text.splitlines()) == 1
    assert "--rollout-num-gpus-per-engine 16: an engine runs within one machine" in text
    assert "--rollout-external-engine-addrs" in text


SHARED, OWN = "--colocate", "--rollout-num-gpus 1"
TENSOR, NCCL = "--update-weight-transport tensor", "--update-weight-transport nccl"


@pytest.mark.parametrize(
    ("line", "num_gpus", "complaint"),
    [
        (f"{NCCL} {SHARED}", 2, "nccl with --colocate: NCCL takes no GPU twice"),
        (NCCL, 1, "nccl on a single GPU: NCCL takes no GPU twice"),
        (f"{TENSOR} {OWN}", 2, "tensor without --colocate: engines on GPUs of their own"),
        (f"{TENSOR} {EXTERNAL} 10.0.0.1:1", 2, "does not reach --rollout-external-engine-addrs"),
        (f"{TENSOR} {EXTERNAL} 127.0.0.1:1 b:1", 0, "engine-addrs b:1, as it stays within one"),
        (f"{TENSOR} --actor-num-nodes 2 {EXTERNAL} a:1", 0, "--actor-num-nodes 2 stays within one"),
    ],
)
def test_a_transport_that_does_not_reach_the_engines_is_refused(line, num_gpus, complaint):
    text = problems(line, num_gpus=num_gpus, in_cluster=True)
    assert complaint in text
    assert "leave it out, or give disk with --update-weight-disk-dir" in text


@pytest.mark.parametrize(
    ("line", "num_gpus"),
    [
        (f"{NCCL} {SHARED}", 0),
        (f"{NCCL} {OWN}", 2),
        (f"{TENSOR} {SHARED}", 2),
        (f"{TENSOR} --actor-num-nodes 2", 0),
        (TENSOR, 1),
        (f"{TENSOR} {EXTERNAL} localhost:1", 1),  # it may see the trainer's GPU
        (f"--update-weight-transport disk --update-weight-disk-dir d {SHARED}", 2),
        (f"{NCCL} --loss-type sft_loss", 1),
    ],
)
def test_a_transport_that_reaches_the_engines_may_be_named(line, num_gpus):
    assert config(line, num_gpus=num_gpus, in_cluster=True).sync.update_weight_transport in line


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("--sglang-pp-size 2", "--rollout-num-gpus-per-engine"),
        ("--sglang-dp-size 2", "--sglang-enable-dp-attention"),
        ("--sglang-disaggregation-mode prefill", "leave it out"),
        ("--sglang-host 0.0.0.0", "engines listen where the run reaches them"),
        ("--sglang-device cpu", "give --device"),
    ],
)
def test_an_engine_gets_no_gpus_but_its_own_and_no_address_but_the_runs(line: str, remedy: str):
    text = problems(line, num_gpus=4)
    assert line in text
    assert remedy in text


def test_an_engine_may_divide_attention_over_its_own_gpus():
    line = "--sglang-dp-size 2 --sglang-enable-dp-attention --rollout-num-gpus-per-engine 2"
    assert config(line, num_gpus=4).sglang.server["dp_size"] == 2


def test_engines_without_a_trainer_have_the_first_gpus(tmp_path: Path):
    from slime_train.producers.engines import _fleet

    for rest, gpus in (("", [2, 3]), ("--debug-rollout-only", [0, 1]), ("--colocate", [0, 1])):
        c = config(f"--actor-num-gpus-per-node 2 --rollout-num-gpus 2 {rest}", num_gpus=4)
        assert list(_fleet(c, tmp_path).gpus) == gpus


def test_a_dump_resolves_as_on_the_machine_that_is_assumed_and_a_run_refuses_to():
    line = "--dump-config --actor-num-nodes 2 --actor-num-gpus-per-node 8 --colocate"
    c = config(f"{line} --assume-gpus 8", num_gpus=8)
    assert (c.cluster.device, c.megatron.world_size, c.model.precision) == ("cuda", 16, "bf16")
    assert "set RAY_ADDRESS" in problems(line, num_gpus=8)
    assert "is for --dump-config" in problems("--assume-gpus 8", num_gpus=8)
    many = "--dump-config --assume-gpus 8 --actor-num-gpus-per-node 8 --rollout-num-gpus 8"
    assert "8 are assumed" in problems(many, num_gpus=8)
