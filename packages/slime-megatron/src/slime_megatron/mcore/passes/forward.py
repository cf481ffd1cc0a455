"""One microbatch through the model, and passes without gradient over many."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from slime_core.batch import Ragged
from torch import Tensor

from slime_megatron.iteration.passes import Entropy
from slime_megatron.mcore.layers.gathering import check_gathered
from slime_megatron.mcore.layers.packed_input import PackedInput
from slime_megatron.mcore.logprobs.full_logits import full_logits
from slime_megatron.mcore.logprobs.output_processor import score
from slime_megatron.mcore.logprobs.scoring import Scoring
from slime_megatron.mcore.logprobs.value_scores import value_scores
from slime_megatron.mcore.ranks.last_stage import is_last_stage
from slime_megatron.mcore.state import TrainState
from slime_megatron.packing.pack import PackedMicrobatch


@dataclass(frozen=True)
class ScoreConfig:
    """How hidden states become log-probabilities; the same in every pass of a run."""

    vocab_size: int
    temperature: float = 1.0
    top_p: float = 1.0
    chunk_size: int = 1024
    keep_logits: bool = False
    value_head: bool = False
    """The model gives values; they have no temperature."""


def run_model(
    model: torch.nn.Module,
    microbatch: PackedMicrobatch,
    config: ScoreConfig,
    *,
    entropy: Entropy = Entropy.NONE,
    logits: bool = False,
) -> Tensor:
    """The chunk's output: hidden states, or at the end of the model what ``Passes`` promises."""
    processor = value_scores if config.value_head else full_logits if logits else score
    output = model(
        input_ids=microbatch.tokens[None],
        position_ids=microbatch.positions[None],
        attention_mask=None,
        packed_seq_params=PackedInput(positions=microbatch.positions, spans=microbatch.spans),
        output_processor=processor,
        output_processor_context=Scoring(
            rows=microbatch.rows,
            targets=microbatch.targets,
            vocab_size=config.vocab_size,
            temperature=config.temperature,
            top_p=config.top_p,
            chunk_size=config.chunk_size,
            keep=config.keep_logits,
            entropy=entropy,
        ),
    )
    check_gathered(model)
    return output


def run_schedule(
    state: TrainState, items: Sequence[Any], forward_step: Callable[..., Any], *, forward_only: bool
) -> list[Any]:
    """Send ``items`` through Megatron's pipeline schedule; what the last stage collects.

    Sequence lengths differ between microbatches and are exchanged between stages, so the length
    given here is not read.
    """
    iterators: list[Iterator[Any]] = [iter(items) for _ in state.chunks]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(iterators) > 1 else iterators[0],
        model=state.chunks,
        num_microbatches=len(items),
        seq_length=state.args.seq_length,
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


@torch.no_grad()
def score_responses(
    state: TrainState,
    microbatches: Sequence[PackedMicrobatch],
    config: ScoreConfig,
    *,
    entropy: Entropy = Entropy.NONE,
) -> tuple[Ragged, ...] | None:
    """Log-probabilities and entropies, or values, of all response tokens, on the CPU.

    Row i belongs to the i-th sample of the microbatches in order; whole responses on every
    context-parallel rank of the last pipeline stage, None on the other stages. Runs the very
    operations of a training pass, so the same weights give the same bits.
    """

    def forward_step(items: Iterator[PackedMicrobatch], model: torch.nn.Module) -> Any:
        item = next(items).to(state.device)
        output = run_model(model, item, config, entropy=entropy)
        return output, partial(_placed, item)

    collected = run_schedule(state, microbatches, forward_step, forward_only=True)
    if not is_last_stage():
        return None
    return _responses(collected, microbatches)


def _responses(
    collected: Sequence[Tensor], microbatches: Sequence[PackedMicrobatch]
) -> tuple[Ragged, ...]:
    values = _gathered(torch.cat(list(collected), dim=1)).cpu()
    lengths = torch.tensor([n for m in microbatches for n in m.response_lengths]).long()
    return tuple(Ragged(row, lengths) for row in values)


def _placed(microbatch: PackedMicrobatch, output: Tensor, *, non_loss_data: bool = True) -> Tensor:
    """This rank's scores at their places in the microbatch's responses, zeros elsewhere."""
    whole = output.new_zeros(output.shape[0], sum(microbatch.response_lengths))
    return whole.index_copy(1, microbatch.response_index, output.float())


def _gathered(values: Tensor) -> Tensor:
    """Fill in what other context-parallel ranks scored: exactly one of them holds each token."""
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(values, group=parallel_state.get_context_parallel_group())
    return values
