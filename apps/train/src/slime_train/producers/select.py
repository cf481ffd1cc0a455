"""Which producer a run needs."""

from pathlib import Path

from slime_core.config.algorithm import PAIR_LOSSES
from slime_core.data.chat import Tokenizer
from slime_core.processes.imports import lean
from slime_sglang.server.launcher import Launchers

from slime_train.producers.interface import Producer
from slime_train.run_config import RunConfig


def make_producer(config: RunConfig, directory: Path, launchers: Launchers) -> Producer:
    """By loss type and debug flags; engines are imported only where they are used."""
    dump = config.debug.load_debug_rollout_data
    if dump is not None:
        from slime_train.producers.replay import Replay

        return Replay(dump, config.debug.load_debug_rollout_data_subsample)
    tokenizer = load_tokenizer(config.model.hf_checkpoint)
    if config.policy_loss.loss_type == "sft_loss":
        from slime_train.producers.demonstrations import demonstrations

        return demonstrations(config, tokenizer)
    if config.policy_loss.loss_type in PAIR_LOSSES:
        from slime_train.producers.preferences import preferences

        return preferences(config, tokenizer)
    from slime_train.producers.engines import EngineProducer

    return EngineProducer(config, tokenizer, directory, launchers)


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a Hugging Face directory."""
    with lean("sklearn"):  # for what does not train with transformers, and takes seconds
        from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
