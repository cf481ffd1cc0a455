"""A fixed batch and a trainer configuration for it, at any layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from slime_convert.families import find, read_config
from slime_core.batch import Ragged, TrainBatch
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.batch import BatchConfig
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.model import ModelConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import ReferenceConfig
from slime_core.config.sync import WeightSyncConfig
from slime_core.schedule.plan import ParallelLayout, plan
from slime_megatron.config import MegatronConfig
from slime_megatron.trainer import RankPayload, TrainerConfig
from torch import Tensor

from slime_testing.megatron_state import _BASE, architecture_argv


def make_batch(
    num_rollouts: int = 8, *, vocab_size: int = 100, seed: int = 0, pairs: bool = False
) -> TrainBatch:
    """Prompts of 2 to 8 tokens, responses of 1 to 24, holes in masks, two rollouts in segments.

    With ``pairs`` every rollout is a pair of a chosen and a rejected response instead.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    rollouts = [*range(num_rollouts), 1, num_rollouts - 1]
    if pairs:
        rollouts = [*range(num_rollouts), *reversed(range(num_rollouts))]
    responses = [draw(1, 24) for _ in rollouts]
    tokens = [
        torch.randint(1, vocab_size, (draw(2, 8) + response,), generator=generator)
        for response in responses
    ]
    masks = [(torch.rand(n, generator=generator) > 0.2).float() for n in responses]
    totals = dict.fromkeys(rollouts, 0.0)
    for rollout, mask in zip(rollouts, masks, strict=True):
        totals[rollout] += float(mask.sum())
    rewards = 1 + torch.randn(len(rollouts), generator=generator)
    if pairs:
        rewards = (torch.arange(len(rollouts)) < num_rollouts).float()
    noise = [-2 - torch.rand(n, generator=generator) for n in responses]
    return TrainBatch(
        tokens=Ragged.from_tensors(tokens),
        response_lengths=torch.tensor(responses),
        loss_mask=Ragged.from_tensors(masks),
        rewards=rewards,
        raw_rewards=rewards,
        truncated=torch.zeros(len(rollouts), dtype=torch.bool),
        sample_ids=torch.arange(len(rollouts)),
        group_ids=torch.tensor(rollouts) // 2,
        rollout_ids=torch.tensor(rollouts),
        rollout_token_counts=torch.tensor([totals[rollout] for rollout in rollouts]),
        rollout_log_probs=Ragged.from_tensors(noise),
    )


def make_config(directory: Path, *argv: str, **sections: Any) -> TrainerConfig:
    """GRPO on the model in ``directory``; ``sections`` replace whole sections or scalars."""
    hf_config = read_config(directory)
    flags = (*architecture_argv(find(hf_config).megatron_args(hf_config)), *_BASE, *argv)
    config = TrainerConfig(
        megatron=MegatronConfig(argv=flags),
        model=ModelConfig(hf_checkpoint=str(directory)),
        batch=BatchConfig(
            global_batch_size=8,
            micro_batch_size=2,
            data_pad_size_multiplier=1,
            log_probs_chunk_size=32,
        ),
        advantage=AdvantageConfig(),
        policy_loss=PolicyLossConfig(),
        off_policy=OffPolicyConfig(),
        reference=ReferenceConfig(),
        checkpoint=CheckpointConfig(),
        sync=WeightSyncConfig(),
        device="cpu",
    )
    return replace(config, **sections)


def make_given(batch: TrainBatch, *, seed: int = 1) -> dict[str, dict[int, Tensor]]:
    """Values and returns of every sample, by its row."""
    generator = torch.Generator().manual_seed(seed)
    lengths = batch.response_lengths.tolist()
    return {
        name: {row: torch.randn(n, generator=generator) for row, n in enumerate(lengths)}
        for name in ("values", "returns")
    }


def make_payload(
    batch: TrainBatch,
    layout: ParallelLayout,
    config: BatchConfig,
    rank: int,
    *,
    whole_rollouts: bool = False,
) -> RankPayload:
    """What global rank ``rank`` is sent."""
    steps = plan(batch, layout, config, whole_rollouts=whole_rollouts)
    dp_rank = rank // (layout.tp * layout.cp) % layout.dp
    return RankPayload.of_rank(dp_rank, batch, steps)
