import pytest
from slime_core.schedule.flops import USUAL, ModelCost, model_cost, workload

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 10,
    "vocab_size": 100,
}
PROJECTIONS = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
DENSE = 3 * 8 * 10


def test_a_token_without_attention_is_the_unit():
    cost = ModelCost(per_token=10.0, per_square=2.0)
    assert workload([0, 1, 5], cost) == [0.0, 1.2, 10.0]


def test_beyond_the_window_attention_grows_in_proportion():
    cost = ModelCost(per_token=1.0, per_square=0.0, per_window_square=1.0, window=4)
    # pairs attended to, twice: 3 tokens see 3 * 3, 6 tokens see 36 less the 2 * 2 out of sight
    assert workload([3, 6], cost) == [3 + 9, 6 + 36 - 4]


def test_the_usual_model_counts_attention_as_much_as_the_rest_at_48_thousand_tokens():
    assert workload([48 * 1024])[0] == 2 * 48 * 1024


def test_a_dense_model_by_hand():
    assert model_cost(TINY) == ModelCost(
        per_token=float(3 * (PROJECTIONS + DENSE) + 800), per_square=3.0 * 8
    )


def test_experts_count_as_far_as_they_are_active():
    moe = TINY | {
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 5,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    }
    experts = 3 * 8 * (2 * 5 + 5)
    assert model_cost(moe).per_token == 3 * PROJECTIONS + 2 * experts + DENSE + 800


def test_what_a_config_leaves_out_is_as_in_the_plainest_model():
    bare = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4}
    # as many key as query heads, a feed-forward block four times as wide, no vocabulary
    assert model_cost(bare).per_token == 3 * (4 * 8 * 8 + 3 * 8 * 32)
    moe = bare | {"num_experts_per_tok": 2, "moe_intermediate_size": 5}
    assert model_cost(moe).per_token == 3 * (4 * 8 * 8 + 3 * 8 * 2 * 5)
    as_wide_as_dense = bare | {"num_experts_per_tok": 2, "intermediate_size": 10}
    assert model_cost(as_wide_as_dense).per_token == 3 * (4 * 8 * 8 + 3 * 8 * 2 * 10)


def test_heads_may_be_wider_than_their_share_of_the_hidden_size():
    cost = model_cost(TINY | {"head_dim": 16})
    assert cost.per_token == 3 * (8 * 16 * (4 + 2 + 2 + 4) + DENSE) + 800
    assert cost.per_square == 3 * 4 * 16


def test_a_shared_expert_of_its_own_width_and_dense_layers_beyond_all_layers():
    moe = TINY | {"num_experts_per_tok": 2, "moe_intermediate_size": 5}
    shared = model_cost(moe | {"shared_expert_intermediate_size": 7}).per_token
    assert shared == 3 * (PROJECTIONS + 3 * 8 * (2 * 5 + 7)) + 800
    all_dense = model_cost(moe | {"first_k_dense_replace": 99})
    assert all_dense == model_cost(TINY)


def test_only_full_attention_is_quadratic():
    mixed = TINY | {
        "layer_types": ["linear_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
    }
    cost = model_cost({"text_config": mixed})
    assert (cost.per_square, cost.per_window_square, cost.window) == (8.0, 8.0, 16)


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_model_that_says_too_little_is_taken_for_a_usual_one(missing):
    assert model_cost({name: x for name, x in TINY.items() if name != missing}) == USUAL
