"""What a loss of the user's returns is looked at before anything is computed with it."""

from pathlib import Path

import pytest
import torch
from slime_core.batch import LocalTokens
from slime_core.errors import PluginError
from slime_core.losses.aggregate import LossOutput
from slime_megatron.iteration.custom_loss import custom_loss


def run(tmp_path: Path, returned: str) -> LossOutput:
    """What the function that returns the expression makes of logits 1, 2, 3."""
    file = tmp_path / "mine.py"
    file.write_text(
        f"import numpy, torch\ndef f(args, batch, logits, reduce):\n    return {returned}\n"
    )
    tokens = LocalTokens(
        mask=torch.ones(3),
        denominators=torch.ones(3),
        sample=torch.zeros(3, dtype=torch.int64),
        position=torch.arange(3),
        response_lengths=(3,),
    )
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    return custom_loss(f"{file}:f", {})({}, logits, tokens)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("(logits, {})", r"depends on the logits, is a tensor of shape \[3\]: sum or average it"),
        ("(torch.tensor(2.0), {})", r"is tensor\(2.\), through which no gradient flows"),
        ("(2.0, {})", "is 2.0, of type float"),
        ("logits.sum()", r"must return \(loss, metrics\), returned tensor"),
        ("(logits.sum(), None)", "its metrics must be a dictionary of numbers, are None"),
        ("(logits.sum(), {'m': logits})", "its metric 'm' is not one number"),
        ("(logits.sum(), {'m': 'high'})", "its metric 'm' is not one number: 'high'"),
    ],
)
def test_what_is_no_loss_or_no_metric_is_told_in_one_line(
    tmp_path: Path, returned: str, told: str
) -> None:
    with pytest.raises(PluginError, match=told) as caught:
        run(tmp_path, returned)
    assert "mine.py:f" in str(caught.value)


def test_metrics_may_be_numbers_or_tensors_of_one(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        "(logits.sum()[None], {'a': 1, 'b': torch.tensor([2.5]), 'c': numpy.float32(0.5)})",
    )
    reported = {name: value.item() for name, value in found.metrics.items()}
    assert reported == {"loss": 6.0, "a": 1.0, "b": 2.5, "c": 0.5}
