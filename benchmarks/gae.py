"""Seconds of generalized advantage estimation: the chunked scan next to the recursion.

The batches are ragged and a tenth of their tokens is not trained on. The recursion is written
twice: token by token over each response, and over all responses at once, padded to the longest,
one step per position. All results are compared before anything is timed; float32 in and out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from record import record
from slime_core.advantages.returns import CHUNK, generalized
from slime_core.batch import Ragged
from torch import Tensor

GAMMA, LAMBDA = 0.999, 0.95
TRAINED = 0.9


@dataclass(frozen=True)
class Batch:
    """What an estimate is made of."""

    values: Tensor
    mask: Ragged
    rewards: Tensor


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--longest", type=int, default=4096, help="tokens of a response")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for samples in options.samples:
        batch = random_batch(samples, options.longest, torch.device(options.device))
        compare(batch)
        seconds = measure({"chunked": chunked, "serial": serial, "padded": padded}, batch, options)
        results.append(
            {
                "samples": samples,
                "tokens": batch.values.numel(),
                "longest": int(batch.mask.lengths.max()),
                **{f"{name}_s": value for name, value in seconds.items()},
                "serial_to_chunked": seconds["serial"] / seconds["chunked"],
                "padded_to_chunked": seconds["padded"] / seconds["chunked"],
            }
        )
    record("gae", {**vars(options), "chunk": CHUNK, "gamma": GAMMA, "gae_lambda": LAMBDA}, results)


def random_batch(samples: int, longest: int, device: torch.device) -> Batch:
    """Responses of uniformly drawn lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (samples,), generator=generator)
    size = int(lengths.sum())
    mask = (torch.rand(size, generator=generator) < TRAINED).float()
    values, rewards = (torch.randn(n, generator=generator) for n in (size, samples))
    return Batch(values.to(device), Ragged(mask.to(device), lengths.to(device)), rewards.to(device))


def chunked(batch: Batch) -> Tensor:
    """The product."""
    advantages, _ = generalized(
        torch.zeros_like(batch.values),
        batch.values,
        batch.mask,
        batch.rewards,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
    )
    return advantages


def serial(batch: Batch) -> Tensor:
    """From the last token of each response to its first, in python numbers."""
    rows = zip(
        Ragged(batch.values, batch.mask.lengths).split(),
        batch.mask.split(),
        batch.rewards.tolist(),
        strict=True,
    )
    result: list[float] = []
    for values, mask, reward in rows:
        advantages: list[float] = []
        advantage = ahead = 0.0
        bonus = reward
        for value, trained in zip(reversed(values.tolist()), reversed(mask.tolist()), strict=True):
            if trained:
                delta = bonus + GAMMA * ahead - value
                advantage = delta + GAMMA * LAMBDA * advantage
                ahead, bonus = value, 0.0
            advantages.append(advantage if trained else 0.0)
        result += reversed(advantages)
    return torch.tensor(result, device=batch.values.device)


def padded(batch: Batch) -> Tensor:
    """All responses at once, position by position from the end."""
    lengths = batch.mask.lengths
    columns = torch.arange(int(lengths.max()), device=lengths.device)
    inside = columns < lengths[:, None]
    values, mask = (
        torch.zeros(inside.shape, device=lengths.device).masked_scatter(inside, x)
        for x in (batch.values, batch.mask.values)
    )
    result = torch.zeros_like(values)
    advantage = ahead = torch.zeros_like(batch.rewards)
    bonus = batch.rewards
    for t in reversed(range(values.shape[1])):
        trained = mask[:, t] > 0
        delta = bonus + GAMMA * ahead - values[:, t]
        advantage = torch.where(trained, delta + GAMMA * LAMBDA * advantage, advantage)
        ahead = torch.where(trained, values[:, t], ahead)
        bonus = torch.where(trained, 0.0, bonus)
        result[:, t] = torch.where(trained, advantage, 0.0)
    return result[inside]


def compare(batch: Batch) -> None:
    """All three agree, or there is nothing to time."""
    expected = serial(batch)
    for other in (chunked(batch), padded(batch)):
        torch.testing.assert_close(other, expected, rtol=1e-3, atol=1e-4)


def measure(
    functions: dict[str, Callable[[Batch], Tensor]], batch: Batch, options: argparse.Namespace
) -> dict[str, float]:
    """The median of each, taking turns, so that what else the machine does meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function(batch).sum().item()  # waits for the device
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
