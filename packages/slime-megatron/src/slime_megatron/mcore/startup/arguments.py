"""Megatron's own command line through its own parser, strictly and without side effects."""

import argparse
import copy
import traceback
from collections.abc import Sequence
from functools import cache
from typing import NoReturn

from megatron.core.msc_utils import MultiStorageClientFeature
from megatron.training.arguments import add_megatron_arguments, validate_args
from megatron.training.vocab_utils import calculate_padded_vocab_size
from slime_core.errors import ConfigError

from slime_megatron.config import RANK_DEFAULTS, REQUIRED
from slime_megatron.mcore.startup import cpu
from slime_megatron.mcore.startup.quiet import quiet


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"Megatron's parser: {message}")


def _flag_of(parser: argparse.ArgumentParser, dest: str) -> str:
    """The spelling of ``dest`` on the command line."""
    for action in parser._actions:
        if action.dest == dest and action.option_strings:
            return action.option_strings[0]
    return dest


def _check_required(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for dest, value in REQUIRED.items():
        given = getattr(args, dest)
        if given != value:
            raise ConfigError(
                f"{_flag_of(parser, dest)} gives {dest}={given!r}, but the model is built from "
                f"PyTorch modules that need {dest}={value!r}: leave the flag out"
            )


def _fill_unused(args: argparse.Namespace) -> None:
    """Give values to what validation demands and this trainer never reads.

    The sequence length, evaluation batches and save cadence of Megatron's own training loop: here
    sequences are packed, and the loop is ours.
    """
    args._is_global_batch_size_explicitly_specified = args.global_batch_size is not None
    model_ranks = (
        args.tensor_model_parallel_size
        * args.pipeline_model_parallel_size
        * args.context_parallel_size
    )
    args.eval_micro_batch_size = args.eval_micro_batch_size or 1
    args.eval_global_batch_size = args.eval_global_batch_size or max(
        1, args.world_size // model_ranks
    )
    if args.seq_length is None and args.encoder_seq_length is None:
        chunk = 2 * args.context_parallel_size
        args.seq_length = max(chunk, (args.max_position_embeddings or chunk) // chunk * chunk)
    if args.save is not None and args.save_interval is None:
        args.save_interval = 1
    if args.lr is not None and args.min_lr is None:
        args.min_lr = 0.0


@cache
def _megatron_parser() -> _Parser:
    """Megatron's own; it reads the source of its configuration to build one, so one is built."""
    parser = _Parser(prog="megatron", allow_abbrev=False, add_help=False)
    with quiet():
        add_megatron_arguments(parser)
    parser.set_defaults(**RANK_DEFAULTS)
    return parser


def complaint(error: BaseException) -> str:
    """What an error says; of an assertion without a word, the line that failed and its place."""
    if str(error) or error.__traceback__ is None:
        return str(error) or type(error).__name__
    failed = traceback.extract_tb(error.__traceback__)[-1]
    return f"{failed.line} ({failed.filename}:{failed.lineno})"


def parse(argv: Sequence[str], rank: int, world_size: int) -> argparse.Namespace:
    """Megatron's namespace for ``argv``, as rank ``rank`` of ``world_size`` sees it.

    Unknown flags are errors. Reads neither ``sys.argv`` nor ``RANK``/``WORLD_SIZE``. Adds
    ``padded_vocab_size`` and turns on variable sequence lengths between pipeline stages.

    Raises:
        ConfigError: with Megatron's own complaint.
    """
    parser = _megatron_parser()
    with quiet():
        args = copy.deepcopy(parser.parse_args(list(argv)))  # validation changes lists in place
    _check_required(parser, args)
    args.rank, args.world_size = rank, world_size
    args.use_cpu_initialization = args.use_cpu_initialization or cpu.is_installed()
    MultiStorageClientFeature.disable()
    _fill_unused(args)
    together, args.moe_grouped_gemm = args.moe_grouped_gemm, False  # not by Megatron's kernels
    try:
        with quiet():
            validate_args(args)
    except (AssertionError, ValueError, RuntimeError, SystemExit) as error:
        raise ConfigError(f"Megatron refuses the arguments: {complaint(error)}") from error
    args.moe_grouped_gemm = together
    args.variable_seq_lengths = True
    if args.vocab_size is None:
        raise ConfigError("--vocab-size is missing: it comes from config.json of --hf-checkpoint")
    if args.padded_vocab_size is None:
        args.padded_vocab_size = calculate_padded_vocab_size(
            args.vocab_size,
            args.make_vocab_size_divisible_by,
            args.tensor_model_parallel_size,
            logging_enabled=False,
        )
    return args
