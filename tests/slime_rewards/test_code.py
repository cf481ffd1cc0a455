import json

import pytest
from slime_rewards import code
from slime_rewards.verdict import Outcome, Question
from slime_rewards.workers import Workers


@pytest.fixture(scope="module")
def workers():
    made = Workers(num_workers=2, time_limit_s=8.0)
    yield made
    made.close()


ADD = "a, b = map(int, input().split())\nprint(a + b)"
ADDED = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]


def verdict(workers, program, tests=None, *, label=None, **metadata):
    metadata["tests"] = tests
    response = f"Here it is:\n```python\n{program}\n```\n"
    question = Question(grader="code", response=response, label=label, metadata=metadata)
    return workers.submit(question).result()


@pytest.mark.parametrize(
    ("program", "tests", "reward"),
    [
        (ADD, ADDED, 1.0),
        (ADD.replace("+", "-"), ADDED, 0.0),
        (ADD, {"inputs": ["1 2"], "outputs": ["3"]}, 1.0),
        ("def f(x):\n    return x + 1", ["assert f(1) == 2", "assert f(2) == 3"], 1.0),
        ("def f(x):\n    return x + 2", {"asserts": ["assert f(1) == 2"]}, 0.0),
        ("def f(:", "assert True", 0.0),
        ("print(0.1 + 0.2)", [{"input": "", "output": "0.3"}], 1.0),
        ("import sys\nprint(1)\nsys.exit(0)", [{"input": "", "output": "1"}], 1.0),
        ("import sys\nprint(1)\nsys.exit(1)", [{"input": "", "output": "1"}], 0.0),
    ],
)
def test_programs_pass_all_tests_or_none_counts(workers, program, tests, reward):
    assert verdict(workers, program, tests).reward == reward


def test_tests_may_be_the_label(workers):
    assert verdict(workers, ADD, label=json.dumps(ADDED)).reward == 1.0
    assert verdict(workers, "x = 1", label="assert x == 1\nassert x < 2").reward == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import builtins\nbuiltins.AssertionError = ValueError\nf = None",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nwhile True: os.fork()",
        "import socket\nsocket.socket()",
        "open('/tmp/slime-was-here', 'w')",
        "import os\nos.remove('/etc/hostname')",
        "import subprocess\nsubprocess.run(['true'])",
        "x = bytearray(10 << 30)",
        "import ctypes\nctypes.string_at(0)",
        "while True: print('x' * 10000)",
        "import ctypes\nctypes.CDLL(None).sleep(60)",
    ],
)
def test_a_hostile_program_scores_zero_and_changes_nothing(workers, program):
    found = verdict(workers, program, "assert f(1) == 2", timeout=0.5)
    assert (found.outcome, found.reward) == (Outcome.VALUE, 0.0)


def test_a_program_that_is_late_scores_zero_within_the_time_of_a_test(workers):
    found = verdict(workers, "while True: pass", ADDED, timeout=0.3)
    assert found.reward == 0.0
    assert found.seconds < 2.0


def test_without_tests_there_is_an_error(workers):
    found = verdict(workers, ADD)
    assert found.outcome is Outcome.ERROR
    assert "no tests in None" in found.error


@pytest.mark.parametrize(
    "tests", [{"inputs": [], "outputs": []}, {"asserts": []}, {"asserts": " "}, [], ["", "\n"]]
)
def test_tests_that_every_program_passes_are_no_tests(tests):
    with pytest.raises(ValueError, match="no tests in"):
        code.grade("```python\nx = 1\n```", None, {"tests": tests})


@pytest.mark.parametrize(
    "tests", [{"inputs": [1], "outputs": [2]}, [{"input": "1", "output": ["2"]}]]
)
def test_input_that_is_no_text_is_named(tests):
    with pytest.raises(ValueError, match=r"test 1 is \(.*input and output are text"):
        code.grade("```python\nx = 1\n```", None, {"tests": tests})


def test_a_table_without_tests_of_its_own_for_a_row_leaves_them_to_the_label(workers):
    found = verdict(workers, ADD, label=json.dumps(ADDED), tests=None, timeout=None)
    assert found.reward == 1.0


def test_the_last_block_behind_the_thoughts_is_the_program():
    text = "<think>```python\n1\n```</think>\n```py\n2\n```\nor\n```python\n3\n```"
    assert code.extract(text) == "3\n"
    assert code.extract("```\n4\n```") == "4\n"
    assert code.extract("```python\n5") == "5"
    assert code.extract("x = 6") == "x = 6"


FRAMES = """import sys
frame = sys._getframe()
while frame:
    for value in frame.f_locals.values():
        if isinstance(value, str) and value.startswith("expected "):
            print(value)
            raise SystemExit
    frame = frame.f_back
"""
OBJECTS = """import gc
seen, todo = set(), gc.get_objects()
while todo:
    one = todo.pop()
    if isinstance(one, str) and one.startswith("expected "):
        print(one)
        break
    if id(one) not in seen and isinstance(one, dict | list | tuple):
        seen.add(id(one))
        todo += one.values() if isinstance(one, dict) else one
"""

MEMORY = """import os
status = open(f"/proc/{os.getppid()}/stat").read()
parent = int(status.rpartition(")")[2].split()[1])
try:
    open(f"/proc/{parent}/mem", "rb")
except PermissionError:
    print("refused")
"""
READ = """import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)
print("refused" if ctypes.get_errno() == 1 else ctypes.get_errno())
"""


@pytest.mark.parametrize("program", [FRAMES, OBJECTS])
@pytest.mark.parametrize("grader", ["code", "boxed_code"])
def test_what_a_program_should_print_is_nowhere_in_its_memory(workers, program, grader):
    tests = [{"input": "", "output": "expected 42"}]
    response = f"```python\n{program}\n```"
    if grader == "boxed_code":
        response = f"\\boxed{{{response}}}"
    question = Question(grader=grader, response=response, metadata={"tests": tests})
    found = workers.submit(question).result()
    assert (found.outcome, found.reward) == (Outcome.VALUE, 0.0)


@pytest.mark.parametrize("program", [MEMORY, READ])
def test_a_program_cannot_ask_for_the_memory_of_another_process(workers, program):
    assert verdict(workers, program, [{"input": "", "output": "refused"}]).reward == 1.0
