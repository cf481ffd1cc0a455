import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_convert import families, shards, transforms
from slime_convert.blocks import dense
from slime_convert.rules import HfTensor, Parameter, Split, Transform
from slime_core.errors import CheckpointError
from slime_testing.tiny_families import family_config


def parameter(*hf, transform, groups=1, split=Split.COLUMN):
    return Parameter("linear.weight", hf, transform, split, groups, alias=False, expert=False)


def test_query_key_and_value_are_interleaved_by_group():
    """Two groups, two query heads each, head size 1: rows q0 q1 k0 v0 | q2 q3 k1 v1."""
    q = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    k, v = torch.tensor([[10.0], [11.0]]), torch.tensor([[20.0], [21.0]])
    qkv = parameter(
        HfTensor("q", (4, 1)),
        HfTensor("k", (2, 1)),
        HfTensor("v", (2, 1)),
        transform=Transform.QKV,
        groups=2,
    )
    full = transforms.to_megatron(qkv, [q, k, v])
    assert full.flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    back = transforms.to_hf(qkv, full)
    assert torch.equal(back["q"], q)
    assert torch.equal(back["k"], k)
    assert torch.equal(back["v"], v)


def test_biases_are_interleaved_like_weights():
    qkv = parameter(
        HfTensor("q", (4,)),
        HfTensor("k", (2,)),
        HfTensor("v", (2,)),
        transform=Transform.QKV,
        groups=1,
    )
    q, k, v = torch.arange(4.0), torch.tensor([10.0, 11.0]), torch.tensor([20.0, 21.0])
    assert transforms.to_megatron(qkv, [q, k, v]).tolist() == [0, 1, 2, 3, 10, 11, 20, 21]


def test_gate_stands_above_up():
    fc1 = parameter(HfTensor("gate", (1, 2)), HfTensor("up", (1, 2)), transform=Transform.STACK)
    gate, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert transforms.to_megatron(fc1, [gate, up]).tolist() == [[1, 2], [3, 4]]


def test_a_misshapen_tensor_is_named_in_either_direction():
    norm = parameter(HfTensor("model.norm.weight", (4,)), transform=Transform.COPY)
    with pytest.raises(CheckpointError, match=r"`model.norm.weight` has shape \[3\].*\[4\]"):
        transforms.to_megatron(norm, [torch.zeros(3)])
    with pytest.raises(CheckpointError, match=r"`linear.weight` has shape \[5\].*\[4\]"):
        transforms.to_hf(norm, torch.zeros(5))


LATENT = ["deepseek_v3", "glm4_moe_lite", "kimi_k2"]
"""Families without query groups."""


@st.composite
def models(draw, model_types):
    """Draw the config.json of a tiny model that four tensor-parallel ranks can share."""
    model_type = draw(st.sampled_from(sorted(model_types)))
    groups = draw(st.sampled_from([4, 8]))
    layers = draw(st.integers(1, 2))
    changes = {"first_k_dense_replace": layers - 1, "mlp_layer_types": None}
    return family_config(model_type, **changes) | {
        "tie_word_embeddings": draw(st.booleans()),
        "num_hidden_layers": layers,
        "hidden_size": draw(st.integers(1, 5)),
        "intermediate_size": 4 * draw(st.integers(1, 3)),
        "num_key_value_heads": groups,
        "num_attention_heads": groups * (1 if model_type in LATENT else draw(st.integers(1, 3))),
        "head_dim": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(1, 300)),
    }


@settings(max_examples=60, deadline=None)
@given(
    config=models(families.FAMILIES),
    tp_size=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_every_family_comes_back_bit_for_bit_from_its_shards(config, tp_size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    table = families.find(config).parameters(config)
    original = {
        name: torch.randn(tensor.shape, generator=generator).to(dtype)
        for name, tensor in table.hf_tensors.items()
    }
    written = {}
    for each in table.parameters:
        full = transforms.to_megatron(each, [original[tensor.name] for tensor in each.hf])
        assert full.shape == each.shape
        parts = [shards.shard(each, full, rank, tp_size) for rank in range(tp_size)]
        joined = shards.unshard(each, parts)
        assert torch.equal(joined, full)
        if not each.alias:
            written |= transforms.to_hf(each, joined)
    assert written.keys() == original.keys()
    for name, tensor in written.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, original[name]), name


@settings(max_examples=20, deadline=None)
@given(config=models(families.FAMILIES.keys() - LATENT), tp_size=st.sampled_from([2, 4]))
def test_a_rank_holds_whole_query_groups_and_matching_rows_of_gate_and_up(config, tp_size):
    """Independent of the code: number the rows, and read off what each rank was given."""
    table = families.find(config).parameters(config)
    groups, heads = config["num_key_value_heads"], config["num_attention_heads"]
    head = dense.head_dim(config)
    qkv = table.find("decoder.layers.0.self_attention.linear_qkv.weight")
    fc1 = next(each for each in table.parameters if each.name.endswith("linear_fc1.weight"))
    ffn = fc1.shape[0] // 2
    # A row's number: which of the tensors it belongs to * 10,000 + its row there.
    q, k, v, gate, up = (
        torch.arange(rows)[:, None].expand(rows, config["hidden_size"]) + 10_000 * which
        for which, rows in enumerate((heads * head, groups * head, groups * head, ffn, ffn))
    )
    for rank in range(tp_size):
        part = shards.shard(qkv, transforms.to_megatron(qkv, [q, k, v]), rank, tp_size)[:, 0]
        mine = range(rank * groups // tp_size, (rank + 1) * groups // tp_size)
        per_group = heads // groups * head
        assert part.tolist() == [
            row
            for g in mine
            for row in (
                *range(g * per_group, (g + 1) * per_group),
                *range(10_000 + g * head, 10_000 + (g + 1) * head),
                *range(20_000 + g * head, 20_000 + (g + 1) * head),
            )
        ]
        both = [gate, up] if len(fc1.hf) == 2 else [torch.cat([gate, up])]
        part = shards.shard(fc1, transforms.to_megatron(fc1, both), rank, tp_size)[:, 0]
        rows = range(rank * ffn // tp_size, (rank + 1) * ffn // tp_size)
        assert part.tolist() == [30_000 + r for r in rows] + [40_000 + r for r in rows]
