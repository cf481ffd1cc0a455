"""Log-probability and entropy from hidden states, forward and backward: chunked next to naive.

The last layer of Qwen3-0.6B: hidden states of 1,024 numbers, 151,936 tokens. Naive is the product
with the output weight, log-softmax in float32, gather, and the entropy from it. Both give gradients
to the hidden states and to the weight; what each allocates beyond the two is its memory. They take
turns. On a GPU the types and sizes are those of training; the CPU takes float32 and few tokens, and
is busy with the products alone, of which computing the logits again makes four out of three.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import wait
from record import record
from slime_megatron.mcore.startup import bootstrap
from torch import Tensor

VOCAB, HIDDEN = 151_936, 1024
MODEL = "Qwen3-0.6B, last layer"
BOUND = 1.5
"""GB at BOUND_TOKENS."""
BOUND_TOKENS = 16_384
TOP_P = 0.95


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="4096 16384 65536; on a CPU 128 512")
    parser.add_argument("--chunk-size", type=int, help="1024; on a CPU 128")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    options.tokens = options.tokens or ([4096, 16_384, 65_536] if on_gpu else [128, 512])
    options.chunk_size = options.chunk_size or (1024 if on_gpu else 128)
    torch.set_num_threads(options.threads)
    bootstrap.load()
    rows: list[dict[str, Any]] = []
    for tokens in options.tokens:
        rows += measure(tokens, options)
    settings = {**vars(options), "vocab": VOCAB, "hidden": HIDDEN, "top_p": TOP_P}
    record(f"logprob_{'gpu' if on_gpu else 'cpu'}", settings, rows)


def measure(tokens: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All results at one number of tokens."""
    inputs = draw(tokens, options.device)
    functions: dict[str, Callable[..., Tensor]] = {
        "naive": naive,
        "chunked": chunked,
        f"chunked, top-p {TOP_P}": lambda *given: chunked(*given, top_p=TOP_P),
    }
    if fits(naive, inputs, options):
        compare(inputs, options)
    seconds = times(functions, inputs, options)
    memory = {name: peak(function, inputs, options) for name, function in functions.items()}
    bound = BOUND if tokens == BOUND_TOKENS and options.device != "cpu" else None
    most_time = 4 / 3 if options.device == "cpu" else 1.0
    rows: list[dict[str, Any]] = []
    for name in functions:
        rows.append(row(f"{name}, {tokens:,} tokens: time", seconds[name], "s", None))
        most = None if name == "naive" else bound
        rows.append(row(f"{name}, {tokens:,} tokens: memory", memory[name], "GB", most))
    slow, quick = seconds["naive"], seconds["chunked"]
    if slow is not None and quick is not None:
        rows.append(row(f"chunked to naive, {tokens:,} tokens: time", quick / slow, "x", most_time))
    for line in rows:
        print(json.dumps(line), flush=True)
    return rows


def row(what: str, value: float | None, unit: str, most: float | None) -> dict[str, Any]:
    """One result; without a value the memory did not suffice."""
    return {
        "what": what,
        "model": MODEL,
        "value": "out of memory" if value is None else value,
        "unit": unit,
        "target": None if most is None else f"<= {most:.3g}",
        "met": None if most is None else value is not None and value <= most,
    }


def draw(tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets, with logits as spread out as a model's."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    hidden = torch.randn(tokens, HIDDEN, **made).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, **made).mul_(3 / HIDDEN**0.5).requires_grad_()
    return hidden, weight, torch.randint(VOCAB, (tokens,), generator=generator, device=device)


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, options: argparse.Namespace) -> Tensor:
    """All logits at once."""
    scores = ((hidden @ weight.T).float() / options.temperature).log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    return torch.stack([scores.gather(-1, targets[:, None])[:, 0], entropy])


def chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    options: argparse.Namespace,
    *,
    top_p: float = 1.0,
) -> Tensor:
    """The product."""
    from slime_megatron.iteration.passes import Entropy
    from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice
    from slime_megatron.mcore.logprobs.target_log_probs import target_log_probs

    scoring = Scoring(
        rows=targets,
        targets=targets,
        vocab_size=VOCAB,
        temperature=options.temperature,
        chunk_size=options.chunk_size,
        entropy=Entropy.TRAIN,
        top_p=top_p,
    )
    return target_log_probs(hidden, weight, scoring, VocabSlice(0, VOCAB, None))


def step(function: Callable[..., Tensor], inputs: Any, options: argparse.Namespace) -> Any:
    """(scores, gradients) of a loss that weighs rows differently, as advantages do."""
    hidden, weight, _ = inputs
    scores = function(*inputs, options)
    weights = torch.linspace(-1, 1, scores.numel(), device=scores.device).view_as(scores)
    return scores.detach(), torch.autograd.grad((scores * weights).sum(), (hidden, weight))


def fits(function: Callable[..., Tensor], inputs: Any, options: argparse.Namespace) -> bool:
    """Whether there is memory for a step."""
    try:
        step(function, inputs, options)
    except torch.OutOfMemoryError:
        return False
    finally:
        clear(options.device)
    return True


def compare(inputs: Any, options: argparse.Namespace) -> None:
    """Both agree, or there is nothing to time.

    Products of other shapes add in another order, and a logit in bfloat16 may round the other way;
    a sum over the vocabulary in float32 rounds by some 1e-5.
    """
    found, grads = step(chunked, inputs, options)
    wanted, expected = step(naive, inputs, options)
    most, mean = (1e-4, 5e-5) if inputs[0].dtype == torch.float32 else (0.3, 0.01)
    difference = (found - wanted).abs()
    assert float(difference.max()) < most, f"scores differ by {float(difference.max())}"
    assert float(difference.mean()) < mean, (
        f"scores differ by {float(difference.mean())} on average"
    )
    for grad, exact in zip(grads, expected, strict=True):
        error = (grad.float() - exact.float()).norm() / exact.float().norm()
        assert float(error) < 0.05, f"gradients differ by {float(error)}"


def times(
    functions: dict[str, Callable[..., Tensor]], inputs: Any, options: argparse.Namespace
) -> dict[str, float | None]:
    """The median of each, taking turns; None where the memory does not suffice."""
    possible = {name: f for name, f in functions.items() if fits(f, inputs, options)}
    seconds: dict[str, list[float]] = {name: [] for name in possible}
    for turn in range(options.repeats + 1):
        for name, function in possible.items():
            wait()
            begin = time.perf_counter()
            step(function, inputs, options)
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: statistics.median(seconds[name]) if name in seconds else None for name in functions
    }


def peak(function: Callable[..., Tensor], inputs: Any, options: argparse.Namespace) -> float | None:
    """GB that a step takes on top of its inputs, gradients included."""
    clear(options.device)
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the last peak
        before = resident("VmRSS")
    if not fits(function, inputs, options):
        return None
    after = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return (after - before) / 1e9


def resident(field: str) -> int:
    """Bytes of this process in memory, or the most there were."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def clear(device: str) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
