import pytest
from slime_convert.names import global_name, layer_offset, local_name


def test_wrappers_are_dropped_and_layers_counted_over_the_model():
    local = "module.module.decoder.layers.1.mlp.linear_fc1.weight"
    assert global_name(local, 4) == "decoder.layers.5.mlp.linear_fc1.weight"
    assert global_name("module.output_layer.weight", 4) == "output_layer.weight"


def test_names_of_the_first_stage_are_those_of_the_model():
    name = "decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight"
    assert global_name(name) == local_name(name) == name


def test_experts_are_counted_over_the_model():
    local = "decoder.layers.0.mlp.experts.local_experts.3.linear_fc2.weight"
    name = global_name(local, 2, expert_offset=8)
    assert name == "decoder.layers.2.mlp.experts.local_experts.11.linear_fc2.weight"
    assert local_name(name, 2, expert_offset=8) == local


def test_chunks_are_dealt_to_the_stages_in_turn():
    """Eight layers, two stages of two chunks: stage 0 holds 0-1 and 4-5, stage 1 2-3 and 6-7."""

    def offset(rank, chunk):
        return layer_offset(8, pp_rank=rank, pp_size=2, vpp_stage=chunk, vpp_size=2)

    assert [offset(0, 0), offset(1, 0), offset(0, 1), offset(1, 1)] == [0, 2, 4, 6]
    assert layer_offset(6, pp_rank=2, pp_size=3) == 4


def test_layers_that_stages_cannot_share_are_refused():
    with pytest.raises(ValueError, match="5 layers do not split evenly over 2 pipeline stages"):
        layer_offset(5, pp_rank=0, pp_size=2)
