import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "packages/slime-core/README.md"


@pytest.fixture(scope="module")
def program():
    return programs()[0]


def programs():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_page_shows_what_its_program_prints(program):
    printed = run(program).stdout.splitlines()
    shown = re.findall(r"# (tensor\(.*)", program)
    assert len(printed) == len(shown) == 2
    assert printed[0] == shown[0]
    assert printed[1].startswith(shown[1].removesuffix(" ...)"))


def test_a_column_where_a_vector_belongs_is_refused_under_the_hook(program):
    column = "\ngroup_relative(torch.ones(4, 1), grouping)"
    assert "f32[4,1]" in run(program + column).stderr


def test_the_loss_of_padded_rows_is_that_of_the_formula():
    found = {}
    exec(programs()[1], found)
    new = found["log_probs"].detach().clone().requires_grad_()
    old, mask = found["old_log_probs"], found["mask"]
    advantages = torch.tensor([[0.5], [-0.5]]) / (0.5**0.5 + 1e-6)
    ratio = torch.exp(new - old)
    each = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    loss = ((each * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert loss.item() != 0
    torch.testing.assert_close(found["log_probs"].grad, new.grad)
