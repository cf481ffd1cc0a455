"""Every flag of Megatron's parser does something, is refused, or is said to have no effect."""

import ast
import importlib.metadata
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path

from slime_megatron.config import MEGATRON_DEFAULTS, REQUIRED, megatron_flags
from slime_megatron.flags.effects import (
    OTHER_LAYERS,
    REFUSED,
    REFUSED_VALUES,
    WHAT_HAPPENS,
    WITHOUT_EFFECT,
)
from slime_testing.workspace import ROOT, modules
from slime_train.sources import all_flags

MEGATRON = Path(str(importlib.metadata.distribution("megatron-core").locate_file("megatron")))
BUILT = {
    "core/model_parallel_config.py": ("ModelParallelConfig",),
    "core/transformer/transformer_config.py": ("TransformerConfig", "MLATransformerConfig"),
    "core/optimizer/optimizer_config.py": ("OptimizerConfig",),
    "core/distributed/distributed_data_parallel_config.py": ("DistributedDataParallelConfig",),
}
"""The dataclasses of Megatron's that a rank fills from its namespace by their fields' names."""
CALLED = {
    "training/argument_utils.py": "core_transformer_config_from_args",
    "training/training.py": "get_megatron_ddp_config",
}
"""What fills them reads a few more by other names."""
CHECKED = {
    "recompute_activations": "becomes recompute_granularity",
    "no_weight_decay_cond_type": "becomes apply_wd_to_qk_layernorm",
    "grad_reduce_in_bf16": "leaves accumulate_allreduce_grads_in_fp32 off",
    "num_layers_per_virtual_pipeline_stage": "becomes virtual_pipeline_model_parallel_size",
    "num_virtual_stages_per_pipeline_rank": "becomes virtual_pipeline_model_parallel_size",
    "use_rotary_position_embeddings": "says what position_embedding_type is",
}
"""What Megatron's ``validate_args`` makes of flags that nothing else reads."""
_HONOURED = """
account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
accumulate_allreduce_grads_in_fp32 adam_beta1 adam_beta2 adam_eps add_bias_linear add_qkv_bias
align_param_gather apply_wd_to_qk_layernorm attention_backend attention_softmax_in_fp32 bf16
check_for_large_grads check_for_nan_in_loss_and_grad clip_grad clone_scatter_output_in_embedding
config_logger_dir context_parallel_size ddp_bucket_size ddp_num_buckets
ddp_pad_buckets_for_high_nccl_busbw ddp_param_name_patterns_for_fp32_local_accumulation
ddp_reduce_scatter_with_fp32_accumulation decoder_first_pipeline_num_layers
decoder_last_pipeline_num_layers decoupled_lr decoupled_min_lr deterministic_mode
disable_bf16_reduced_precision_matmul distrib_optim_fully_reshardable_mem_efficient
distribute_saved_activations embedding_init_method_std end_weight_decay exp_avg_dtype
exp_avg_sq_dtype expert_model_parallel_size expert_tensor_parallel_size ffn_hidden_size fp16
fp32_residual_connection grad_reduce_in_bf16 group_query_attention hidden_size hysteresis
init_method_std init_method_xavier_uniform initial_loss_scale kv_channels kv_lora_rank
layernorm_epsilon lion_beta1 lion_beta2 loss_scale loss_scale_window lr lr_decay_iters
lr_decay_samples lr_decay_style lr_warmup_fraction lr_warmup_init lr_warmup_iters
lr_warmup_samples lr_wsd_decay_iters lr_wsd_decay_samples lr_wsd_decay_style main_grads_dtype
main_params_dtype make_vocab_size_divisible_by max_position_embeddings
microbatch_group_size_per_vp_stage min_loss_scale min_lr mlp_chunks_for_training
moe_aux_loss_coeff moe_deepep_num_sms moe_enable_deepep moe_expert_capacity_factor
moe_ffn_hidden_size moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_grouped_gemm
moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute moe_hybridep_num_sms
moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs moe_input_jitter_eps
moe_layer_freq moe_layer_recompute moe_ncclep_static_shape moe_ncclep_zero_copy
moe_permute_fusion moe_permute_fusion_into_hybridep moe_router_bias_update_rate moe_router_dtype
moe_router_enable_expert_bias moe_router_force_biased moe_router_force_load_balancing
moe_router_fusion moe_router_group_topk moe_router_load_balancing_type moe_router_num_groups
moe_router_pre_softmax moe_router_score_function moe_router_topk moe_router_topk_scaling_factor
moe_shared_expert_intermediate_size moe_shared_expert_overlap moe_token_dispatcher_type
moe_z_loss_coeff mscale mscale_all_dim multi_latent_attention muon_coefficient_type
muon_extra_scale_factor muon_fp32_matmul_prec muon_momentum muon_nesterov muon_num_ns_steps
muon_scalar_optimizer muon_scale_mode muon_split_qkv muon_tp_mode nccl_ub no_save_rng
no_weight_decay_cond_type normalization num_attention_heads num_experts num_layers
num_layers_per_virtual_pipeline_stage num_query_groups num_virtual_stages_per_pipeline_rank
optimizer optimizer_cpu_offload optimizer_offload_fraction overlap_cpu_optimizer_d2h_h2d
overlap_grad_reduce overlap_p2p_comm overlap_p2p_comm_warmup_flush overlap_param_gather
override_opt_param_scheduler perform_initialization pin_cpu_grads pin_cpu_params
pipeline_model_parallel_layout pipeline_model_parallel_size q_lora_rank qk_head_dim qk_layernorm
qk_pos_emb_head_dim recompute_activations recompute_granularity recompute_method
recompute_modules recompute_num_layers rope_scaling_factor rope_type rotary_base
rotary_interleaved rotary_percent rotary_scaling_factor seed sequence_parallel sgd_momentum
start_weight_decay swiglu tensor_model_parallel_size untie_embeddings_and_output_weights
use_checkpoint_opt_param_scheduler use_cpu_initialization use_distributed_optimizer
use_gloo_process_groups use_precision_aware_optimizer use_rope_scaling
use_rotary_position_embeddings v_head_dim vocab_size weight_decay weight_decay_incr_style
yarn_beta_fast yarn_beta_slow yarn_original_max_position_embeddings
"""
HONOURED = frozenset(_HONOURED.split())
"""Flags somebody has looked at and found to do what they say; a new one has to be looked at."""


def destinations() -> set[str]:
    """What Megatron's parser stores and no flag of slime's own is called."""
    theirs = {flag.dest for flag in megatron_flags()}
    return theirs & {flag.dest for flag in all_flags().values() if flag.owner == "megatron"}


def fields() -> Iterator[str]:
    """Of the configurations that are built."""
    for path, names in BUILT.items():
        for node in ast.parse((MEGATRON / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        yield item.target.id


OTHER_CODE = ("extensions", "fsdp", "inference", "ssm", "models/hybrid", "dot_product_attention.py")
"""Of Megatron's core, for layers and ways to train that are not used here."""
ALWAYS_SO = {"attention_softmax_in_fp32": "every kernel of attention takes it in float32"}
"""Honoured without anybody who reads them."""
PUT_TOGETHER = "muon_"
"""How names begin that the core puts together where it reads them."""


def used_in_core() -> Iterator[str]:
    """What Megatron's core reads of any object, or names to read it, where it is used here."""
    core = MEGATRON / "core"
    for path in core.rglob("*.py"):
        place = str(path.relative_to(core))
        if any(other in place for other in OTHER_CODE):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def read_of_args(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """``x`` of every ``args.x`` and ``something.args.x``."""
    for node in nodes:
        if isinstance(node, ast.Attribute):
            match node.value:
                case ast.Name(id="args") | ast.Attribute(attr="args"):
                    yield node.attr
                case _:
                    pass


def read_by_megatron() -> Iterator[str]:
    for path, name in CALLED.items():
        for node in ast.parse((MEGATRON / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                yield from read_of_args(ast.walk(node))


def read_here() -> Iterator[str]:
    for path in modules("slime_megatron"):
        yield from read_of_args(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_flag_is_honoured_refused_or_said_to_have_no_effect():
    known = HONOURED | OTHER_LAYERS | set(REQUIRED) | set(REFUSED) | set(WITHOUT_EFFECT)
    assert sorted(destinations() - known) == [], "read where it is read, then put it into a list"
    assert sorted(known - destinations()) == [], "Megatron has them no longer"


def test_no_flag_is_two_of_these():
    lists = (HONOURED, OTHER_LAYERS, set(REQUIRED), set(REFUSED), set(WITHOUT_EFFECT))
    assert sum(map(len, lists)) == len(frozenset[str]().union(*lists))


def test_an_honoured_flag_is_read_where_a_rank_is_built():
    read = {*fields(), *read_by_megatron(), *read_here(), *CHECKED}
    assert sorted((HONOURED | OTHER_LAYERS) - read) == []


def test_an_honoured_flag_that_fills_a_configuration_is_used_by_who_has_it():
    elsewhere = {*read_by_megatron(), *read_here(), *CHECKED, *ALWAYS_SO}
    assert set(ALWAYS_SO) <= HONOURED
    unused = HONOURED - elsewhere - set(used_in_core())
    assert [dest for dest in sorted(unused) if not dest.startswith(PUT_TOGETHER)] == []


def test_exceptions_are_of_flags_they_are_exceptions_to():
    assert set(WHAT_HAPPENS) <= set(REFUSED)
    assert set(REFUSED_VALUES) <= set(WITHOUT_EFFECT)


def test_no_default_is_changed_that_has_no_effect():
    assert set(MEGATRON_DEFAULTS) & set(WITHOUT_EFFECT) == {"tokenizer_type"}


def test_the_page_of_these_lists_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts/generate_megatron_docs.py"))
    assert script["page"]() == (ROOT / "docs/reference/megatron.md").read_text(encoding="utf-8")
