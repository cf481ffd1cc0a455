"""The parts of a rank as a configuration describes them, once the process groups stand."""

import logging
from pathlib import Path
from typing import Any

import torch
from slime_convert.families import find, read_config, scored

from slime_megatron.iteration.objective import Objective
from slime_megatron.mcore import model
from slime_megatron.mcore.layers import compiled
from slime_megatron.mcore.optimizer import megatron_optimizer
from slime_megatron.mcore.passes.forward import ScoreConfig
from slime_megatron.mcore.passes.model_passes import ModelPasses
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.snapshots import Snapshots
from slime_megatron.trainer_config import TrainerConfig
from slime_megatron.trainer_hooks import TrainerHooks, model_provider

logger = logging.getLogger(__name__)

_DEFAULT_CHUNK = {"cpu": 1024, "cuda": 2048}
"""Rows whose logits are computed at once, by the kind of device."""


def build_state(
    config: TrainerConfig, args: Any, device: torch.device, *, value_head: bool
) -> TrainState:
    """Model with random weights, optimizer and schedule. Collective.

    ``args``: Megatron's, after validation; ``value_head``: one number per token instead of the
    vocabulary.
    """
    given = config.model
    only_train = given.only_train_params_name_list or ()
    frozen = given.freeze_params_name_list or ()
    hf_config = read_config(Path(given.hf_checkpoint))
    family = scored(find(hf_config)) if value_head else find(hf_config)
    chunks = model.build(
        args,
        hf_config,
        family,
        only_train=only_train,
        frozen=frozen,
        value_head=value_head,
        provider=model_provider(given.custom_model_provider_path),
    )
    _compile(chunks, given.compile_layers, compiled.why_not(args, device))
    built, scheduler = megatron_optimizer.build(args, chunks)
    return TrainState(
        args=args,
        chunks=chunks,
        optimizer=built,
        scheduler=scheduler,
        family=family,
        hf_config=hf_config,
        device=device,
        value_head=value_head,
        partly_trained=bool(only_train or frozen),
    )


def _compile(chunks: list[torch.nn.Module], wanted: bool | None, obstacle: str | None) -> None:
    """Layers, unless it is not wanted or something is in the way."""
    if wanted and obstacle:
        logger.warning("--compile-layers has no effect: %s", obstacle)
    if wanted is not False and obstacle is None:
        compiled.compile_layers(chunks)


def passes_of(
    state: TrainState,
    snapshots: Snapshots,
    config: TrainerConfig,
    objective: Objective,
    hooks: TrainerHooks,
) -> ModelPasses:
    """How the model is run: its chunks of logits, its padding, its users' hooks."""
    chunk = config.batch.log_probs_chunk_size
    return ModelPasses(
        state,
        snapshots,
        ScoreConfig(
            vocab_size=state.args.vocab_size,
            temperature=config.temperature,
            top_p=config.top_p if config.policy_loss.use_top_p_log_probs else 1.0,
            chunk_size=chunk if chunk > 0 else _DEFAULT_CHUNK[state.device.type],
            keep_logits=chunk <= 0,
            value_head=state.value_head,
        ),
        pad_multiple=config.batch.data_pad_size_multiplier,
        hooks=hooks,
        stateless=config.optimizer.use_stateless_adam,
        reads_after=objective.kind == "rm_loss",
    )
