"""How parameters are cut for the ranks of a layout."""

import pytest
from slime_convert import families
from slime_convert.dist.chunks import Layout, cut
from slime_testing.tiny import qwen3_config


def chunks(name, tensor):
    config = {key: value for key, value in qwen3_config().items() if value is not None}
    parameter = families.find(config).parameters(config).find(name)
    layout = Layout(tensor=tensor, vocab_divisible_by=8)
    return [(c.rank, c.begin, c.end, c.columns) for row in cut(parameter, layout, 4) for c in row]


FIRST, SECOND = (f"decoder.layers.1.mlp.linear_fc{n}.weight" for n in (1, 2))
QKV = "decoder.layers.1.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        # 128 rows of the gate and as many of the other half: each rank has rows of both.
        (
            FIRST,
            2,
            [(0, 0, 64, None), (1, 64, 128, None), (0, 128, 192, None), (1, 192, 256, None)],
        ),
        (SECOND, 2, [(0, 0, 64, (0, 64)), (1, 0, 64, (64, 128))]),
        (SECOND, 1, [(0, 0, 64, None)]),
        # Two query groups of 128 rows: four ranks have less than one each.
        (QKV, 2, [(0, 0, 128, None), (1, 128, 256, None)]),
        (QKV, 4, [(0, 0, 256, None)]),
        # 100 rows and what pads them to a multiple of 2 * 8.
        ("embedding.word_embeddings.weight", 2, [(0, 0, 56, None), (1, 56, 112, None)]),
        ("decoder.final_layernorm.weight", 2, [(0, 0, 64, None)]),
    ],
)
def test_each_rank_has_chunks_of_its_own(name, tensor, expected):
    assert chunks(name, tensor) == expected
