import pytest
from slime_core.schedule.layout import ParallelLayout


def test_every_dimension_but_experts_multiplies_the_ranks():
    assert ParallelLayout(dp=2, cp=3, tp=5, pp=7, ep=10).world_size == 2 * 3 * 5 * 7


def test_ranks_of_a_data_share_count_tensor_then_context_parallelism_first():
    layout = ParallelLayout(dp=2, cp=2, tp=2, pp=2)
    shares = [layout.dp_rank(rank) for rank in range(layout.world_size)]
    assert shares == [0, 0, 0, 0, 1, 1, 1, 1] * 2


@pytest.mark.parametrize(("pp", "vpp", "expected"), [(4, 1, 1), (4, 2, 4), (1, 1, 1)])
def test_only_interleaved_stages_want_whole_rounds(pp, vpp, expected):
    assert ParallelLayout(pp=pp, vpp=vpp).microbatch_multiple == expected
