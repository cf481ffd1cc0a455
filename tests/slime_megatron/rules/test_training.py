"""What would end every rank once it has started is refused before anything starts."""

from typing import Any

import pytest
from slime_core.config.draft import Draft, Facts
from slime_megatron.config import MEGATRON_DEFAULTS, megatron_flags
from slime_megatron.rules.training import RULES


def draft(**values: Any) -> Draft:
    made = Draft()
    for flag in reversed(megatron_flags()):
        made.megatron.put(flag.dest, flag.default, "default")
    for name, value in {**MEGATRON_DEFAULTS, "train_iters": 10}.items():
        made.megatron.put(name, value, "default of slime")
    for name, value in values.items():
        made.megatron.put(name, value, "command line")
    own = {"num_rollout": 10, "debug_rollout_only": False, "precision": "fp32"}
    for name, value in own.items():
        made.own.put(name, value, "default")
    for rule in RULES:
        rule(made, Facts())
    return made


FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_lr": 1e-3}, "--min-lr 0.001 is more than --lr 1e-06"),
        ({"lr_warmup_init": 1.0}, "--lr-warmup-init 1.0 is more than --lr"),
        ({"lr_warmup_samples": 5}, "--lr-warmup-samples 5 counts samples.*--lr-warmup-iters"),
        ({"lr_decay_style": "WSD"}, "give --lr-wsd-decay-iters"),
        ({"lr_warmup_iters": 10}, r"less than the schedule's length 10 \(the run's steps\)"),
        ({"lr_warmup_iters": 5, "lr_decay_iters": 4}, r"length 4 \(--lr-decay-iters\)"),
        ({"lr_warmup_iters": 5, "lr_warmup_fraction": 0.1}, "give one of them"),
        ({"start_weight_decay": 0.1}, "--start-weight-decay 0.1 is for a weight decay that grows"),
        (
            {"weight_decay_incr_style": "linear", "end_weight_decay": 0.1},
            "give both --start-weight-decay and --end-",
        ),
        ({"weight_decay_incr_style": "linear"}, "give both --start-weight-decay and --end-"),
        (
            {
                "weight_decay_incr_style": "linear",
                "start_weight_decay": 0.1,
                "end_weight_decay": 0.0,
            },
            "--end-weight-decay 0.0 is less than --start-weight-decay 0.1",
        ),
        ({"recompute_granularity": "full"}, "also needs --recompute-method uniform"),
        ({"recompute_granularity": "full"}, "also needs --recompute-num-layers 1"),
        (
            {"moe_layer_recompute": True, "recompute_num_layers": 1},
            "--recompute-num-layers 1 is for .* full, and this run has selective: leave it out",
        ),
        (FULL | {"recompute_granularity": "selective"}, "this run has selective: leave it out"),
        (
            {"recompute_granularity": "selective", "recompute_modules": ("mlp", "attn")},
            "--recompute-modules attn: no such module; possible: core_attn",
        ),
        (
            {"recompute_granularity": "selective", "recompute_modules": ("layernorm",)},
            "--recompute-modules layernorm: .* TransformerEngine's layers, which are not used",
        ),
        (FULL | {"moe_layer_recompute": True}, "--moe-layer-recompute: --recompute-gran.*already"),
        (
            {
                "ddp_reduce_scatter_with_fp32_accumulation": True,
                "num_virtual_stages_per_pipeline_rank": 2,
            },
            "does not go with virtual pipeline stages",
        ),
        ({"distribute_saved_activations": True}, "--distribute-saved-activations needs"),
        ({"overlap_param_gather": True}, "--overlap-param-gather needs --overlap-grad-reduce"),
        ({"fp32_residual_connection": True}, "--fp32-residual-connection is for a model in"),
    ],
)
def test_a_contradiction_is_refused_with_what_to_do(values: dict[str, Any], message: str):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(draft(**values).problems))


def test_what_goes_together_is_taken():
    found = draft(
        **FULL,
        lr=1e-5,
        min_lr=1e-5,
        lr_warmup_iters=9,
        weight_decay_incr_style="cosine",
        start_weight_decay=0.1,
        end_weight_decay=0.1,
        overlap_param_gather=True,
        overlap_grad_reduce=True,
        distribute_saved_activations=True,
        tensor_model_parallel_size=2,
    )
    assert (found.problems, found.notices) == ([], [])


def test_a_way_to_recompute_has_no_effect_alone_and_it_is_said():
    found = draft(recompute_method="uniform", recompute_num_layers=2)
    assert found.problems == []
    assert found.notices == [
        "--recompute-method uniform, --recompute-num-layers 2: of no effect without "
        "--recompute-granularity"
    ]
    assert found.megatron["recompute_method"] is None
