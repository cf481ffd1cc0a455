"""A whole rollout in one function: ask the router, score, return the groups."""

import asyncio
from typing import Any

import httpx
from slime_core.data.chat import conversation, render
from slime_core.hooks.rollout_functions import RolloutFnTrainOutput
from slime_core.types import Sample, Status
from slime_rewards.math import grade
from transformers import AutoTokenizer


def generate_rollout(args: Any, rollout_id: int, data_source: Any) -> RolloutFnTrainOutput:
    """Twice as many groups as are needed; those with the most varied rewards are trained on."""
    groups = data_source.get_samples(2 * args.rollout_batch_size)
    asyncio.run(answer_all(args, rollout_id, [sample for group in groups for sample in group]))
    groups.sort(key=lambda group: variance([sample.reward for sample in group]), reverse=True)
    dropped = len(groups) - args.rollout_batch_size
    return RolloutFnTrainOutput(groups[: args.rollout_batch_size], {"rollout/num_dropped": dropped})


async def answer_all(args: Any, rollout_id: int, samples: list[Sample]) -> None:
    """All requests at once; the engines queue what is too much."""
    address = f"http://{args.sglang_router_ip}:{args.sglang_router_port}"
    tokenizer = AutoTokenizer.from_pretrained(args.hf_checkpoint)
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await asyncio.gather(*(answer(client, tokenizer, args, rollout_id, s) for s in samples))


async def answer(
    client: httpx.AsyncClient, tokenizer: Any, args: Any, rollout_id: int, sample: Sample
) -> None:
    """One response with its tokens, log-probabilities and reward."""
    if not sample.tokens:
        text = render(tokenizer, conversation(sample.prompt), add_generation_prompt=True)
        sample.tokens = tokenizer.encode(text, add_special_tokens=False)
    body = {
        "input_ids": sample.tokens,
        "return_logprob": True,
        "sampling_params": {
            "temperature": args.rollout_temperature,
            "max_new_tokens": args.rollout_max_response_len,
            "sampling_seed": 1_000_000 * rollout_id + (sample.index or 0),
        },
    }
    found = (await client.post("/generate", json=body)).raise_for_status().json()
    rows = found["meta_info"]["output_token_logprobs"]
    sample.tokens = [*sample.tokens, *(token for _, token, *_ in rows)]
    sample.rollout_log_probs = [log_prob for log_prob, *_ in rows]
    sample.response, sample.response_length = found["text"], len(rows)
    cut_off = found["meta_info"]["finish_reason"]["type"] == "length"
    sample.status = Status.TRUNCATED if cut_off else Status.COMPLETED
    sample.reward = grade(sample.response, sample.label)


def variance(rewards: list[float]) -> float:
    """Mean squared distance from the mean."""
    mean = sum(rewards) / len(rewards)
    return sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
