"""Which numbers Megatron's flags take; its parser takes any, and some end every rank much later."""

from collections.abc import Mapping
from types import MappingProxyType

from slime_core.config.data import LARGEST_SEED
from slime_core.config.flags import Spelling

_COUNTS = """
context_parallel_size ddp_bucket_size decoder_first_pipeline_num_layers
decoder_last_pipeline_num_layers expert_model_parallel_size expert_tensor_parallel_size hysteresis
loss_scale_window make_vocab_size_divisible_by microbatch_group_size_per_vp_stage moe_router_topk
num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank
pipeline_model_parallel_size recompute_num_layers tensor_model_parallel_size
"""
_NOT_NEGATIVE = """
adam_eps clip_grad decoupled_lr decoupled_min_lr end_weight_decay init_method_std lr lr_decay_iters
lr_warmup_init lr_warmup_iters lr_warmup_samples lr_wsd_decay_iters min_lr moe_aux_loss_coeff
moe_z_loss_coeff sgd_momentum start_weight_decay weight_decay
"""
_POSITIVE = "initial_loss_scale loss_scale min_loss_scale"
_BELOW_ONE = "adam_beta1 adam_beta2 lion_beta1 lion_beta2 lr_warmup_fraction"


def _by_destination() -> Mapping[str, Spelling]:
    groups: tuple[tuple[str, Spelling], ...] = (
        (_COUNTS, {"at_least": 1}),
        (_NOT_NEGATIVE, {"at_least": 0}),
        (_POSITIVE, {"above": 0}),
        (_BELOW_ONE, {"at_least": 0, "below": 1}),
        ("optimizer_offload_fraction", {"at_least": 0, "at_most": 1}),
        ("seed", {"at_least": 0, "at_most": LARGEST_SEED}),
    )
    return MappingProxyType({dest: limits for dests, limits in groups for dest in dests.split()})


RANGES = _by_destination()
"""Megatron destination -> the range of its numbers, where not every number makes sense."""
