"""Which of Megatron's flags are refused or change nothing here, and why.

Megatron's parser knows about eight hundred. Those that configure its model, optimizer and gradient
buffers go to the code that builds these. The rest is read by Megatron's own training loop, which
slime's takes the place of: what would change the result or is asked for as a protection is refused,
the rest is said to have no effect.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Group = tuple[str, str]
"""A reason, and the destinations it holds for."""


def _by_destination(groups: tuple[Group, ...]) -> Mapping[str, str]:
    return MappingProxyType({dest: why for why, dests in groups for dest in dests.split()})


_LENGTH = "the length of a run is given with --num-rollout"
_PROMPTS = "prompts are given with --prompt-data"
_MEMORY = "memory is shared out by --use-distributed-optimizer and parallelism"

REFUSED = _by_destination(
    (
        ("it follows from --num-rollout and --num-steps-per-rollout", "train_iters"),
        (_LENGTH, "train_samples exit_interval exit_duration_in_mins"),
        ("evaluation is given with --eval-prompt-data and --eval-interval", "eval_iters"),
        (
            _PROMPTS,
            """data_path train_data_path data_args_path per_split_data_args_path mock_data
            phase_transition_iterations""",
        ),
        ("evaluation sets are given with --eval-prompt-data", "valid_data_path test_data_path"),
        (
            "the tokenizer is the one of --hf-checkpoint",
            "tokenizer_model vocab_file merge_file",
        ),
        ("TensorBoard files go to --output-dir", "tensorboard_dir"),
        ("give flags, or a file of them with --custom-config-path", "yaml_cfg"),
        ("--num-rollout 0 only evaluates", "skip_train"),
        ("reinforcement learning is slime's own loop", "perform_rl_step"),
        (
            "checkpoints do not allow it; give --overlap-param-gather",
            "overlap_param_gather_with_optimizer_step",
        ),
        ("fine-tuning is given with --loss-type sft_loss", "sft"),
        (_MEMORY, "use_torch_fsdp2 use_megatron_fsdp num_distributed_optimizer_instances"),
        ("checkpoints are converted by slime-convert", "ckpt_convert_format ckpt_convert_save"),
        ("multi-token prediction is not trained", "mtp_num_layers"),
        (
            "gradients are added over ranks, by what the whole step counts: leave it out",
            "ddp_average_in_collective",
        ),
        (
            "it needs a PyTorch of NVIDIA's own, with ring_exchange: leave it out",
            "use_ring_exchange_p2p",
        ),
        (
            "what is trained is given with --only-train-params-name-list and "
            "--freeze-params-name-list",
            "freeze_all_layers",
        ),
        (
            "a step has the samples that --global-batch-size or --num-steps-per-rollout gives it, "
            "from the first to the last",
            "rampup_batch_size step_batch_size_schedule decrease_batch_size_if_needed",
        ),
        (
            "every iteration is trained; take prompts out of --prompt-data",
            "iterations_to_skip result_rejected_tracker_filename",
        ),
        (
            "the loss is on responses, end of text included; a sample's loss mask leaves tokens "
            "out",
            "eod_mask_loss",
        ),
        (
            "attention logits are not clipped: leave it out",
            "qk_clip qk_clip_alpha qk_clip_threshold",
        ),
        ("weights come from --hf-checkpoint, or from --load", "pretrained_checkpoint"),
        (
            "layers are those that config.json of --hf-checkpoint describes: leave it out, or "
            "build another model with --custom-model-provider-path",
            """moe_use_upcycling use_mup spec hybrid_layer_pattern hybrid_override_pattern
            heterogeneous_layers_config_path heterogeneous_layers_config_encoded_json""",
        ),
        (
            "it needs TransformerEngine's layers, which are not used: give --bf16, --fp16 or "
            "--precision fp32",
            "fp8 fp4 fp8_param_gather fp4_param_gather te_precision_config_file",
        ),
        (
            "products of matrices are cuBLAS's, which depend on how many rows there are: leave it "
            "out; --deterministic-mode repeats a run of the same batches",
            "batch_invariant_mode",
        ),
        ("routing is not replayed: leave it out", "moe_enable_routing_replay"),
        (
            "a token's experts depend on that token alone: leave it out",
            "moe_expert_rank_capacity_factor",
        ),
        (
            "weights are divided by --tensor-model-parallel-size and "
            "--expert-tensor-parallel-size alone",
            "tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards",
        ),
        (
            "ranks follow one another by tensor, context, expert, data and pipeline parallelism: "
            "leave it out",
            "use_tp_pp_dp_mapping",
        ),
        ("ranks have to meet: leave it out", "fake_process_group"),
        (
            "data-parallel replicas are not compared: leave it out",
            "check_weight_hash_across_dp_replicas_interval",
        ),
        (
            "a step is not computed again; one whose gradients are not finite is skipped, and "
            "--max-skipped-steps in a row end the run",
            "rerun_mode check_for_spiky_loss",
        ),
        (
            "a run that is ended goes on from its last checkpoint; --save-interval says how often "
            "there is one",
            "exit_signal_handler exit_signal_handler_for_training adlr_autoresume",
        ),
        (
            "a process that is lost is answered as in 'Runs that survive': leave it out",
            "inprocess_restart enable_ft_package",
        ),
        (
            "checkpoints are written to --save, every --save-interval iterations",
            """non_persistent_save_interval non_persistent_ckpt_type non_persistent_global_ckpt_dir
            non_persistent_local_ckpt_dir non_persistent_local_ckpt_algo replication""",
        ),
        ("the files of a checkpoint are not hashed: leave it out", "verify_integrity"),
        ("--ckpt-step says which checkpoint it goes on from", "override_ckpt_iteration"),
        (
            "the optimizer's parameters come with its state, unless --no-load-optim is given",
            "load_main_params_from_ckpt",
        ),
        ("a teacher is given with --use-opd", "logits_save_dir logits_load_dir"),
        (
            "CUDA graphs need batches of one shape, and these are packed: leave it out",
            "enable_cuda_graph",
        ),
        ("Megatron has given it up: give --micro-batch-size", "batch_size"),
        ("Megatron has given it up: give --lr-warmup-fraction", "warmup"),
        ("Megatron has given it up: give --tensor-model-parallel-size", "model_parallel_size"),
        ("Megatron has given it up: give --recompute-granularity", "checkpoint_activations"),
    )
)
"""Megatron destinations that a run must not set, and what to do instead."""

REFUSED_VALUES: Mapping[str, Mapping[Any, str]] = MappingProxyType(
    {"cuda_graph_impl": MappingProxyType({"local": REFUSED["enable_cuda_graph"]})}
)
"""Values that are refused of destinations that are not."""

WHAT_HAPPENS: Mapping[str, Any] = MappingProxyType({"rerun_mode": "disabled"})
"""What is done anyway, where Megatron's default is something else: it may be said."""

_OTHER_LAYERS = """
activation_func_clamp_value apply_query_key_layer_scaling
apply_residual_connection_post_layernorm attention_output_gate dsa_indexer_head_dim
dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32 dsa_indexer_loss_coeff dsa_indexer_n_heads
dsa_indexer_rope_interleaved dsa_indexer_rotate_activation dsa_indexer_scoring_relu
dsa_indexer_skip_topk_offset dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_use_sparse_loss
dsa_kernel_backend experimental_attention_variant glu_linear_offset is_hybrid_model
layernorm_zero_centered_gamma linear_attention_freq linear_conv_kernel_dim linear_key_head_dim
linear_num_key_heads linear_num_value_heads linear_value_head_dim mamba_head_dim
mamba_num_groups mamba_num_heads mamba_state_dim mamba_training_ssm_states_dtype
moe_apply_probs_on_input moe_latent_size moe_mlp_glu_interleave_size moe_shared_expert_gate
moe_shared_expert_glu_interleave_size mrope_section no_rope_freq qk_l2_norm quick_geglu
rotary_seq_len_interpolation_factor softmax_type squared_relu use_mamba_mem_eff_path
window_attn_skip_freq window_size
"""
OTHER_LAYERS = frozenset(_OTHER_LAYERS.split())
"""Megatron destinations of layers that no config.json leads to; a user's own model may."""

_LOGGED = "metrics are slime's own"
_ATTENTION = "--attention-backend says which kernels attention runs on"

WITHOUT_EFFECT = _by_destination(
    (
        (
            "Python collects garbage and PyTorch keeps freed memory as they see fit",
            "manual_gc manual_gc_interval manual_gc_eval empty_unused_memory_level",
        ),
        (
            _LOGGED,
            """log_interval log_params_norm log_throughput log_progress log_timers_to_tensorboard
            log_loss_scale_to_tensorboard log_validation_ppl_to_tensorboard
            log_memory_to_tensorboard log_memory_interval log_device_memory_used
            log_num_zeros_in_grad log_max_attention_logit log_world_size_to_tensorboard log_energy
            log_straggler straggler_ctrlr_port straggler_minmax_count disable_straggler_on_startup
            timing_log_level timing_log_option barrier_with_L1_time tensorboard_log_interval
            tensorboard_queue_size wandb_exp_name wandb_save_dir wandb_entity logging_level
            enable_one_logger one_logger_project one_logger_run_name one_logger_async
            app_tag_run_name app_tag_run_version moe_per_layer_logging
            run_workload_inspector_server dump_param_to_param_group_map""",
        ),
        (
            "'Looking inside a run' tells what can be traced and written instead",
            """profile profile_step_start profile_step_end profile_ranks use_pytorch_profiler
            pytorch_profiler_collect_shapes pytorch_profiler_collect_callstack
            pytorch_profiler_collect_chakra memory_snapshot_path record_shapes nvtx_ranges
            save_params_interval save_activations_interval save_tokens_per_expert_interval
            save_wgrads_interval save_dgrads_interval moe_routing_trace_path
            moe_routing_trace_max_training_iters moe_routing_trace_capture_logits
            moe_routing_trace_capture_hidden_states moe_routing_trace_dump_weights""",
        ),
        (
            _ATTENTION,
            """use_flash_attn flash_attention_version use_kitchen_attention
            kitchen_attention_backend""",
        ),
        (
            "under context parallelism keys and values are gathered",
            """cp_comm_type hierarchical_context_parallel_sizes hybrid_context_parallel
            max_seqlen_per_dp_cp_rank""",
        ),
        (
            "it is TransformerEngine's, of which attention alone is used",
            """tp_comm_overlap tp_comm_overlap_cfg tp_comm_bulk_wgrad tp_comm_bulk_dgrad
            tp_comm_overlap_ag tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag
            tp_comm_split_rs tp_comm_bootstrap_backend delay_wgrad_compute
            defer_embedding_wgrad_compute wgrad_deferral_limit use_te_activation_func
            use_transformer_engine_op_fuser fused_residual_rmsnorm te_rng_tracker
            moe_single_grouped_weight moe_single_grouped_bias use_grouped_gemm_for_dense_mlp
            use_grouped_gemm_for_shared_expert use_fused_weighted_squared_relu
            cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers
            fine_grained_activation_offloading offload_modules min_offloaded_tensor_size
            delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks
            activation_offload_fraction fine_grained_offloading_max_inflight_offloads
            moe_paged_stash moe_paged_stash_page_size moe_paged_stash_buffer_size_factor_cuda
            moe_paged_stash_buffer_size_factor_cpu mla_down_proj_fusion""",
        ),
        (
            "weights and gradients have the precision of --bf16, --fp16 or --precision fp32",
            """fp8_recipe fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len
            fp8_amax_compute_algo fp8_wgrad fp8_output_proj first_last_layers_bf16
            num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 fp4_recipe fp4_quantizer_factory
            moe_router_padding_for_quantization moe_router_padding_for_fp8
            reuse_grad_buf_for_mxfp8_param_ag keep_fp8_transpose_cache stream_ckpt_dequant""",
        ),
        (
            "log-probabilities are computed by slime's kernels, in float32",
            "cross_entropy_loss_fusion cross_entropy_fusion_impl fp16_lm_cross_entropy",
        ),
        (
            "CUDA graphs need batches of one shape, and these are packed",
            """cuda_graph_impl external_cuda_graph cuda_graph_modules cuda_graph_scope_deprecated
            cuda_graph_warmup_steps optimizer_cuda_graph""",
        ),
        (
            "it belongs to Megatron's training loop, which slime's takes the place of",
            """train_sync_interval gpu_sniff_test_interval align_grad_reduce disable_jit_fuser
            enable_experimental use_layer_wise_param_layout""",
        ),
        (
            "gradients are added over ranks, by what the whole step counts",
            "gradient_reduce_div_fusion",
        ),
        (
            "--optimizer-cpu-offload keeps Adam's state in host memory by PyTorch's Adam",
            "use_torch_optimizer_for_cpu_offload",
        ),
        (
            "tokens go to their experts and come back between two computations",
            """overlap_moe_expert_parallel_comm overlap_dispatch_backward_with_experts_wgrad
            ep_overlap_early_attn_memory_release high_priority_a2a_comm_stream""",
        ),
        (
            "parallel groups are NCCL's as NCCL makes them, with --distributed-timeout-minutes; "
            "NCCL_* and TORCH_NCCL_* go into --train-env-vars",
            """nccl_communicator_config_path high_priority_stream_groups use_sharp
            sharp_enabled_group pipeline_model_parallel_comm_backend create_all_gather_group
            distributed_timeout_seconds_after_init flight_recorder_dump_path
            flight_recorder_trace_buffer_size flight_recorder_dump_on_timeout
            flight_recorder_include_stack_trace flight_recorder_include_only_active
            flight_recorder_extra_dump_on_exec local_rank lazy_mpu_init""",
        ),
        (
            _MEMORY,
            """data_parallel_sharding_strategy outer_dp_sharding_strategy
            enable_full_sharding_in_hsdp fsdp_double_buffer fsdp_db_use_persist_buf_on_alloc_fail
            fsdp_manual_registration megatron_fsdp_main_params_dtype megatron_fsdp_main_grads_dtype
            megatron_fsdp_grad_comm_dtype megatron_fsdp_enable_fine_grained_param_gather
            megatron_fsdp_max_pool_double_buffer suggested_communication_unit_size
            torch_fsdp2_reshard_after_forward strict_fsdp_dtensor_load init_model_with_meta_device
            disable_symmetric_registration""",
        ),
        (
            "evaluation is given with --eval-prompt-data and --eval-interval",
            """start_eval_at_iter full_validation multiple_validation_sets validation_set_names
            eval_micro_batch_size eval_global_batch_size""",
        ),
        (
            "a checkpoint is torch_dist's, can be read on any layout, and is written and read by "
            "every rank's share",
            """async_strategy use_persistent_ckpt_worker async_ckpt_cpu_priority
            async_ckpt_io_priority async_ckpt_use_cpu_shm dist_ckpt_strictness dist_ckpt_workers
            dist_ckpt_save_pre_mcore_014 dist_ckpt_optim_fully_reshardable
            ckpt_fully_parallel_save ckpt_fully_parallel_save_deprecated
            ckpt_fully_parallel_save_process_group ckpt_fully_parallel_load
            ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_load_process_group
            ckpt_assume_constant_structure ckpt_load_validate_sharding_integrity
            use_dist_ckpt_deprecated dist_ckpt_format_deprecated auto_detect_ckpt_format
            ckpt_convert_update_legacy_dist_opt_format replication_jump replication_factor
            enable_msc disable_msc_deprecated""",
        ),
        (
            "the model is that of config.json, and the layout that of the command line",
            """use_checkpoint_args use_mp_args_from_checkpoint_args
            use_tokenizer_model_from_checkpoint_args
            encoder_num_layers decoder_num_layers encoder_seq_length decoder_seq_length
            relative_attention_num_buckets relative_attention_max_distance
            yarn_correction_range_round_to_int test_mode openai_gelu onnx_safe
            bert_binary_head deprecated_use_mcore_models add_position_embedding
            data_parallel_random_init moe_upcycling_granularity mup_width_mult mup_base_hidden_size
            mup_embedding_mult mup_output_mult mup_base_head_dim mup_attn_scale_power""",
        ),
        (
            "a --load that is not there is refused as it is",
            "exit_on_missing_checkpoint",
        ),
        (
            "multi-token prediction is not trained",
            """mtp_standalone mtp_loss_scaling_factor mtp_use_repeated_layer mtp_detach_heads
            mtp_hybrid_override_pattern""",
        ),
        (
            "experts take every token that is sent to them",
            "moe_token_drop_policy moe_router_quantile_balancing_ema "
            "moe_pad_expert_input_to_capacity",
        ),
        (
            _PROMPTS,
            """dataloader_type split per_dataset_sequences_path dataloader_fast_cache_load
            dataloader_defer_npy_index_mmap data_cache_path mmap_bin_files sample_rate mask_prob
            short_seq_prob num_workers dataloader_inter_document_masking
            create_attention_mask_in_dataloader num_dataset_builder_threads
            object_storage_cache_path mid_level_dataset_surplus allow_ambiguous_pad_tokens fim_data
            fim_rate fim_spm_rate fim_split_sample fim_fragment_rate fim_no_prefix
            fim_prefix_token fim_middle_token fim_suffix_token fim_pad_token fim_eod_token
            sft_tokenizer_prompt_format exit_signal_handler_for_dataloader data_sharding""",
        ),
        (
            "samples are packed, each with positions and attention of its own",
            "seq_length reset_position_ids reset_attention_mask",
        ),
        (
            "the tokenizer and the size of its vocabulary are those of --hf-checkpoint",
            """tokenizer_type pad_vocab_size vocab_extra_ids metadata_path special_tokens
            tiktoken_pattern tiktoken_num_special_tokens tokenizer_sentencepiece_legacy
            tokenizer_sentencepiece_ignore_extra_whitespaces tokenizer_hf_no_use_fast
            tokenizer_hf_no_include_special_tokens trust_remote_code null_tokenizer_eod_id
            null_tokenizer_pad_id chat_template""",
        ),
        (
            "it belongs to a flag that is refused",
            """exit_signal adlr_autoresume_interval logits_save_top_k logits_save_top_p
            logits_save_top_p_min_k logits_save_dtype logits_load_decode_threads
            logits_load_prefetch_factor logits_load_msc_prefetch_depth logits_load_kd_loss_alpha
            logits_load_ignore_errors calc_ft_timeouts ft_num_warmup_iters
            inprocess_max_iterations inprocess_monitor_thread_interval
            inprocess_monitor_process_interval inprocess_progress_watchdog_interval
            inprocess_heartbeat_interval inprocess_soft_timeout inprocess_hard_timeout
            inprocess_heartbeat_timeout inprocess_barrier_timeout inprocess_completion_timeout
            inprocess_last_call_wait inprocess_termination_grace_time inprocess_granularity
            inprocess_active_world_size inprocess_empty_cuda_cache""",
        ),
        (
            "faults are put into a run by slime-drill",
            """error_injection_rate error_injection_type fault_injector_ranks
            fault_injector_num_ranks fault_injector_fault_types fault_injector_fault_probabilities
            fault_injector_fault_delay fault_injector_delay_start_iteration
            fault_injector_mtti_seconds fault_injector_offset_seconds fault_injector_seed""",
        ),
        (
            "reinforcement learning is slime's own loop",
            """rl_prompts_per_eval grpo_prompts_per_step grpo_group_size rl_generation_lag
            rl_submission_granularity rl_consumption_granularity grpo_iterations
            grpo_clamp_eps_lower grpo_clamp_eps_upper grpo_kl_beta grpo_entropy_term_weight
            grpo_filter_groups_with_same_reward langrl_env_config rl_default_temperature
            rl_default_top_p rl_default_top_k rl_offload_optimizer_during_inference
            rl_kv_cache_management_mode rl_persist_cuda_graphs rl_partial_rollouts
            rl_inference_logprobs_is_correction rl_importance_sampling_truncation_coef
            rl_use_sequence_packing rl_sequence_packing_max_sequences_per_bin
            rl_sequence_packing_algo rl_training_cuda_graphs
            rl_inference_tensor_model_parallel_size rl_inference_pipeline_model_parallel_size
            rl_inference_expert_model_parallel_size rl_inference_expert_tensor_model_parallel_size
            rl_inference_model_unified_memory_level rl_offload_inference_model_weights_when_idle
            refit_method rl_verify_model_weights_swap rl_skip_bos_token rl_profile rl_profile_dir
            rl_inference_parsers""",
        ),
        (
            "engines generate, and their flags begin with --sglang-",
            """inference_batch_times_seqlen_threshold max_tokens_to_oom use_legacy_static_engine
            inference_max_requests inference_max_seq_length inference_dynamic_batching
            inference_dynamic_batching_buffer_size_gb
            inference_dynamic_batching_paused_buffer_size_gb
            inference_dynamic_batching_mamba_memory_ratio inference_dynamic_batching_block_size
            inference_dynamic_batching_max_requests inference_dynamic_batching_max_tokens
            inference_dynamic_batching_num_cuda_graphs
            inference_dynamic_batching_track_paused_request_events
            inference_dynamic_batching_track_generated_token_events decode_only_cuda_graphs
            inference_cuda_graph_all_prefills inference_cuda_graph_max_tokens
            inference_cuda_graph_scope inference_dynamic_batching_unified_memory_level
            enable_chunked_prefill num_speculative_tokens
            inference_dynamic_batching_enable_prefix_caching
            inference_dynamic_batching_prefix_caching_eviction_policy
            inference_dynamic_batching_prefix_caching_coordinator_policy
            inference_dynamic_batching_prefix_caching_routing_alpha
            inference_dynamic_batching_prefix_caching_mamba_gb
            inference_dynamic_batching_cuda_graph_mixed_prefill_count
            inference_dynamic_batching_cuda_graph_sizing_distribution
            inference_dynamic_batching_sampling_backend offset_sampling_seed_by_dp_rank
            inference_dynamic_batching_async_sched_mode inference_dynamic_batching_logprobs_mode
            inference_logging_step_interval inference_text_gen_server_logging
            inference_wandb_logging inference_coordinator_port mamba_inference_conv_states_dtype
            mamba_inference_ssm_states_dtype inference_use_synchronous_zmq_collectives
            inference_disable_ep_consensus inference_shards inference_rng_tracker
            inference_fuse_tp_communication inference_disable_triton_nvls_kernels
            inference_grouped_gemm_backend inference_moe_disable_fused_quant_kernels
            inference_moe_token_dispatcher_type moe_pad_experts_for_cuda_graph_inference
            nccl_all_reduce_for_prefill symmetric_ar_type mlp_chunks_for_prefill flash_decode
            cache_mla_latents output_bert_embeddings bert_embedder_type""",
        ),
        (
            "it belongs to other models",
            """ict_head_size biencoder_projection_dim biencoder_shared_query_context_model ict_load
            bert_load titles_data_path query_in_block_prob use_one_sent_docs evidence_data_path
            retriever_report_topk_accuracies retriever_score_scaling block_data_path
            embedding_path indexer_batch_size indexer_log_interval num_classes img_h img_w
            num_channels patch_dim classes_fraction data_per_class_fraction head_lr_mult
            vision_pretraining vision_pretraining_type vision_backbone_type swin_backbone_type
            mask_type mask_factor iter_per_epoch dino_local_img_size dino_local_crops_number
            dino_head_hidden_size dino_bottleneck_size dino_freeze_last_layer
            dino_norm_last_layer dino_warmup_teacher_temp dino_teacher_temp
            dino_warmup_teacher_temp_epochs""",
        ),
    )
)
"""Megatron destinations that are taken and change nothing, and why, or what does it instead."""
