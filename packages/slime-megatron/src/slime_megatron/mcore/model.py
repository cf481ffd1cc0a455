"""Build this rank's model chunks: Megatron's GPT model on our attention, norm and rotary."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import Float16Module
from megatron.training.arguments import core_transformer_config_from_args
from megatron.training.training import (
    get_megatron_ddp_config,
    resolve_ddp_bucket_size,
    wrap_model_chunks_with_ddp,
)
from slime_core.errors import ConfigError

from slime_megatron.mcore.experts.dispatcher import sum_experts_in_order
from slime_megatron.mcore.experts.grouped_experts import group_experts, side_by_side
from slime_megatron.mcore.experts.routing_bias import keep_routing_bias
from slime_megatron.mcore.layers.attention import CausalAttention
from slime_megatron.mcore.layers.gathering import gather_by_layer
from slime_megatron.mcore.layers.latent_attention import complete_config, use_latent_attention
from slime_megatron.mcore.layers.norm import RMSNorm
from slime_megatron.mcore.layers.post_norm import use_post_norms
from slime_megatron.mcore.layers.reducing import reduce_in_order
from slime_megatron.mcore.layers.rotary import PositionRotary, use_rotation_tables
from slime_megatron.mcore.layers.value_head import ValueHead
from slime_megatron.mcore.products.weight_gradients import fuse_weight_gradients
from slime_megatron.mcore.startup.quiet import quiet
from slime_megatron.mcore.weights.frozen import freeze, keep_gradients_flowing

if TYPE_CHECKING:
    from slime_convert.families import Family

ModelProvider = Callable[..., torch.nn.Module]
"""``f(pre_process, post_process, vp_stage=None)``: a user's own model."""


def transformer_config(args: Any) -> Any:
    """Megatron's ``TransformerConfig`` for ``args``.

    ``calculate_per_token_loss`` is always on in it, whatever the flag of that name says: with it
    Megatron adds gradients over microbatches and data- and context-parallel ranks and scales them
    by nothing, so the loss itself carries the divisor (see ``step``). Fused kernels for experts
    need TransformerEngine and are off, whatever their flags say: the flags say how to compute, not
    what. ``--moe-grouped-gemm`` is answered by ``grouped_experts``.
    """
    with quiet():
        config = core_transformer_config_from_args(args)
    config.calculate_per_token_loss = True
    config.moe_grouped_gemm = config.moe_permute_fusion = config.moe_router_fusion = False
    config.moe_shared_expert_overlap = False
    complete_config(config, args)
    return config


def layer_spec(config: Any, vp_stage: int | None = None, *, post_norms: bool = False) -> Any:
    """Megatron's local block spec of this stage with attention and norms swapped for ours."""
    if config.normalization != "RMSNorm":
        raise ConfigError(f"--normalization {config.normalization}: only RMSNorm is supported")
    block: Any = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage
    )
    for layer in block.layer_specs:
        parts = layer.submodules
        attention = parts.self_attention.submodules
        attention.core_attention = CausalAttention
        parts.input_layernorm = RMSNorm
        if parts.pre_mlp_layernorm is not IdentityOp:
            parts.pre_mlp_layernorm = RMSNorm
        for name in ("q_layernorm", "k_layernorm"):
            if getattr(attention, name, IdentityOp) not in (IdentityOp, None):
                setattr(attention, name, RMSNorm)
        if config.multi_latent_attention:
            use_latent_attention(parts.self_attention)
        if post_norms:
            use_post_norms(parts)
    block.layer_norm = RMSNorm
    return block


def _gpt_chunk(
    args: Any, config: Any, vp_stage: int | None, family: "Family", *, value_head: bool
) -> torch.nn.Module:
    """The layers of one (virtual) pipeline stage."""
    tied = not args.untie_embeddings_and_output_weights
    ends: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    model: Any = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(config, vp_stage, post_norms=family.post_norms),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**ends),
        post_process=parallel_state.is_pipeline_last_stage(**ends),
        share_embeddings_and_output_weights=tied and not value_head,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        vp_stage=vp_stage,
    )
    if not config.multi_latent_attention:
        use_rotation_tables()
        model.rotary_pos_emb.__class__ = PositionRotary
        model.rotary_pos_emb.table_dtype = config.params_dtype
    sum_experts_in_order(model)
    if args.moe_grouped_gemm:
        group_experts(model)
    if value_head and model.post_process:
        model.output_layer = ValueHead(config.hidden_size)
    return model


def _provided_chunk(provider: ModelProvider, vp_stage: int | None) -> torch.nn.Module:
    ends: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    return provider(
        pre_process=parallel_state.is_pipeline_first_stage(**ends),
        post_process=parallel_state.is_pipeline_last_stage(**ends),
        vp_stage=vp_stage,
    )


def build(
    args: Any,
    hf_config: Mapping[str, Any],
    family: "Family",
    *,
    provider: ModelProvider | None = None,
    only_train: Sequence[str] = (),
    frozen: Sequence[str] = (),
    value_head: bool = False,
) -> list[torch.nn.Module]:
    """This rank's chunks with random weights, on the device, in ``DistributedDataParallel``.

    Collective over data-parallel ranks. ``args`` already describes the architecture that ``family``
    derives from ``hf_config``; the two are here for families whose modules need more than flags.
    ``value_head``: one number per token instead of the vocabulary.
    """
    config = transformer_config(args)
    stages = args.virtual_pipeline_model_parallel_size
    chunks: list[torch.nn.Module] = []
    for stage in range(stages) if stages else (None,):
        with quiet():
            if provider is None:
                chunk = _gpt_chunk(args, config, stage, family, value_head=value_head)
            else:
                chunk = _provided_chunk(provider, stage)
        setattr(chunk, "vp_stage", stage)  # noqa: B010
        chunks.append(chunk.to(torch.cuda.current_device()))
    freeze(chunks, only_train=only_train, frozen=frozen)
    if args.recompute_granularity is not None:
        keep_gradients_flowing(chunks)
    return _wrap(args, config, chunks)


def _wrap(args: Any, config: Any, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """16-bit parameters if asked for, then gradient buffers and their reduction."""
    for chunk in chunks:
        for parameter in chunk.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    if args.bf16 or args.fp16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
        keep_routing_bias(chunks)
    ddp_config = get_megatron_ddp_config(args)
    # A step with a gradient that is not finite is handled once, in `step`, by the gradient norm.
    ddp_config.check_for_nan_in_grad = False
    whole = [i > 0 for i in range(len(chunks))]
    with quiet(), side_by_side(chunks):
        wrapped = wrap_model_chunks_with_ddp(
            chunks,
            config,
            ddp_config,
            bucket_sizes=_bucket_sizes(ddp_config, chunks, whole),
            disable_bucketing_per_chunk=whole,
        )
    if next(wrapped[0].parameters()).is_cuda:
        fuse_weight_gradients(wrapped)
    gather_by_layer(wrapped)
    reduce_in_order(wrapped)
    return wrapped


def _bucket_sizes(
    ddp_config: Any, chunks: Sequence[torch.nn.Module], whole: Sequence[bool]
) -> list[int | None]:
    """Parameters of a bucket, whose gradients travel together; None: one bucket for the chunk.

    Only several buckets let gradients and weights travel while others are computed. As Megatron's
    own loop decides it, of which ``wrap_model_chunks_with_ddp`` is only a part.
    """
    count = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    size = resolve_ddp_bucket_size(ddp_config, group, ddp_config.overlap_grad_reduce, count)
    ddp_config.bucket_size = size
    first_stage = parallel_state.get_pipeline_model_parallel_rank() == 0
    return [size if first_stage and not one else None for one in whole]
