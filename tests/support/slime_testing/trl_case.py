"""TRL's trainers without a model: their own loss and advantage code, run on given numbers.

Only the methods that do the arithmetic are called, on an object that skips the trainer's
constructor. Whatever a test does not set is off.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(x: Tensor, lengths: Sequence[int], *, side: str = "right") -> Tensor:
    """A row per response, 0 behind its end (or before its start)."""
    return pad_sequence(list(x.split(list(lengths))), batch_first=True, padding_side=side)


def alone(x: Any, **_: Any) -> Any:
    """What a collective does on one process."""
    return x


def arithmetic(trainer: type, args: Any, **attributes: Any) -> Any:
    """An object of class ``trainer`` with the settings of ``args`` and without a model."""

    class Arithmetic(trainer):
        def __init__(self) -> None:
            self.__dict__.update(vars(args), args=args, **attributes)

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

        def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, **__: Any) -> Any:
            return model.log_probs, model.entropy, None

        def _generate(self, prompts: list[Any]) -> Any:
            return self.generated

        def _calculate_rewards(self, *_: Any) -> Tensor:
            return self.given_rewards

    made = Arithmetic()
    made.accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        gather=alone,
        gather_for_metrics=alone,
        reduce=alone,
    )
    made.model = SimpleNamespace(
        training=True, is_gradient_checkpointing=False, log_probs=None, entropy=None
    )
    made.current_gradient_accumulation_steps = 1
    made._tokenizer = SimpleNamespace(pad_token_id=0)
    made._metrics = {"train": defaultdict(list)}
    made._logs = defaultdict(lambda: deque(maxlen=99), rewards=defaultdict(list))
    made._pending_extra_logs, made._pending_metrics = {}, {}
    made._total_train_tokens, made._tp_size = 0, 1
    return made
