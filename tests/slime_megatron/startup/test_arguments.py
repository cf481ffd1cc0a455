"""Megatron's parser, asked strictly."""

from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = [
    "--num-layers=2",
    "--hidden-size=64",
    "--num-attention-heads=4",
    "--max-position-embeddings=64",
    "--vocab-size=100",
    "--make-vocab-size-divisible-by=16",
    "--normalization=RMSNorm",
    "--micro-batch-size=1",
    "--global-batch-size=4",
    "--train-iters=3",
    "--lr=1e-3",
]
REFUSED = {
    "unknown": ["--rollout-temprature=1"],
    "abbreviated": ["--num-layer=2"],
    "not a number": ["--num-layers=two"],
    "dropout": ["--hidden-dropout=0.1"],
    "transformer engine": ["--transformer-impl=transformer_engine"],
    "does not divide": ["--tensor-model-parallel-size=3"],
    "contradiction": ["--fp16", "--bf16"],
    "without a word": ["--min-lr=1"],
}


def parse_all(rank: int, world: int) -> dict[str, Any]:
    import contextlib
    import io
    import sys
    import warnings

    from slime_core.errors import ConfigError
    from slime_megatron.mcore.startup import arguments

    before = list(sys.argv)
    out = io.StringIO()
    messages: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out):
        warnings.simplefilter("always")
        args = arguments.parse([*FLAGS, "--tensor-model-parallel-size=2"], 1, 4)
        for name, flags in REFUSED.items():
            try:
                arguments.parse([*FLAGS, *flags], 0, 4)
            except ConfigError as error:
                messages[name] = str(error)
    return messages | {
        "silent": (out.getvalue(), [str(w.message) for w in caught], sys.argv == before),
        "values": (args.rank, args.world_size, args.data_parallel_size, args.padded_vocab_size),
        "variable": args.variable_seq_lengths,
    }


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    return run_on_ranks(1, parse_all, megatron=True)[0]


def test_parsing_says_nothing_and_touches_nothing(parsed: dict[str, Any]):
    assert parsed["silent"] == ("", [], True)


def test_rank_and_world_size_are_the_callers(parsed: dict[str, Any]):
    assert parsed["values"] == (1, 4, 2, 128)
    assert parsed["variable"] is True


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("unknown", "--rollout-temprature"),
        ("abbreviated", "--num-layer"),
        ("not a number", "--num-layers"),
        ("dropout", "--hidden-dropout"),
        ("transformer engine", "--transformer-impl"),
        ("does not divide", "world size"),
        ("contradiction", "Megatron refuses"),
        ("without a word", "refuses the arguments: assert args.min_lr <= args.lr ("),
    ],
)
def test_what_cannot_be_is_a_configuration_error(parsed: dict[str, Any], name: str, named: str):
    assert named in parsed[name]
