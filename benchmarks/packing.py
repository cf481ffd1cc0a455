"""Seconds, padding and imbalance of cutting one step into microbatches and data-parallel shares.

Response lengths are log-normal, cut off at the longest that fits. Three ways: in order of arrival
(a microbatch is closed when the next sequence does not fit, ranks take turns), the product by
tokens, and the product by work (--balance-data --balance-by-flops).

    padding    share of the token budget of all microbatches that holds no token
    imbalance  how much longer the busiest rank works than the mean, by multiply-adds
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence

from record import record
from slime_core.config.batch import BatchConfig
from slime_core.schedule.flops import model_cost, workload
from slime_core.schedule.layout import ParallelLayout
from slime_core.schedule.plan import share

MODEL = {  # Qwen3-4B
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
}
MEDIAN, SIGMA = 2048, 1.0

Shares = list[list[list[int]]]
"""[rank][microbatch] -> rows."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_024, 8_192, 100_000])
    parser.add_argument("--budget", type=int, default=32_768, help="tokens of a microbatch")
    parser.add_argument("--dp", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    for samples in options.samples:
        lengths = draw(samples, options.budget, options.seed)
        work = workload(lengths, model_cost(MODEL))
        ways: dict[str, Callable[[], Shares]] = {
            "arrival": lambda lengths=lengths: arrival(lengths, options.budget, options.dp),
            "tokens": lambda lengths=lengths: product(lengths, list(map(float, lengths)), options),
            "work": lambda lengths=lengths, work=work: product(lengths, work, options),
        }
        for name, way in ways.items():
            begin = time.perf_counter()
            shares = way()
            seconds = time.perf_counter() - begin
            check(shares, lengths, options.budget)
            results.append(
                {
                    "samples": samples,
                    "tokens": sum(lengths),
                    "way": name,
                    "seconds": seconds,
                    "microbatches_per_rank": len(shares[0]),
                    "padding": padding(shares, lengths, options.budget),
                    "imbalance": imbalance(shares, work),
                }
            )
    record("packing", {**vars(options), "median": MEDIAN, "sigma": SIGMA, **MODEL}, results)


def draw(samples: int, longest: int, seed: int) -> list[int]:
    """Log-normal lengths."""
    generator = random.Random(seed)
    mean = math.log(MEDIAN)
    return [min(longest, 1 + int(generator.lognormvariate(mean, SIGMA))) for _ in range(samples)]


def arrival(lengths: Sequence[int], budget: int, dp: int) -> Shares:
    """What needs no thought: next fit, then turns, then padding to equal counts."""
    bins: list[list[int]] = [[]]
    room = budget
    for i, length in enumerate(lengths):
        if length > room:
            bins.append([])
            room = budget
        bins[-1].append(i)
        room -= length
    bins += [[] for _ in range(-len(bins) % dp)]
    return [bins[rank::dp] for rank in range(dp)]


def product(lengths: Sequence[int], work: Sequence[float], options: argparse.Namespace) -> Shares:
    """``slime_core.schedule``."""
    config = BatchConfig(
        global_batch_size=len(lengths),
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=options.budget,
        balance_data=True,
    )
    rows = [[i] for i in range(len(lengths))]
    return share(rows, lengths, work, ParallelLayout(dp=options.dp), config)


def check(shares: Shares, lengths: Sequence[int], budget: int) -> None:
    """Every row once, no microbatch over its budget, as many for every rank."""
    rows = [row for rank in shares for rows in rank for row in rows]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= budget for rank in shares for rows in rank)
    assert len({len(rank) for rank in shares}) == 1


def padding(shares: Shares, lengths: Sequence[int], budget: int) -> float:
    """Share of the budget without a token."""
    return 1 - sum(lengths) / (budget * sum(len(rank) for rank in shares))


def imbalance(shares: Shares, work: Sequence[float]) -> float:
    """Longest rank over the mean rank, less 1."""
    ranks = [math.fsum(work[row] for rows in rank for row in rows) for rank in shares]
    return max(ranks) * len(ranks) / math.fsum(ranks) - 1


if __name__ == "__main__":
    main()
