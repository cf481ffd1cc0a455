import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "packages/slime-core/README.md"


@pytest.fixture(scope="module")
def program():
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return found


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
