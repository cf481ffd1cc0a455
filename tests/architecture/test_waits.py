"""Nothing waits for ever: every call that waits for somebody else says for how long."""

import ast
from collections.abc import Iterator

import pytest
from slime_testing.workspace import PACKAGES, ROOT, modules

ALLOWED = "waits:"
"""``# waits: why`` on the line of a call: what ends this wait is said there."""

TIMED = {
    # method: (how many positional arguments make it something else or give it a deadline, why not)
    "communicate": 2,
    "wait": 1,
    "join": 1,
    "result": 1,
    "acquire": 2,
}
MODULE_CALLS = {
    "ray.get": None,
    "ray.wait": None,
    "subprocess.run": None,
    "subprocess.check_output": None,
    "subprocess.check_call": None,
    "subprocess.call": None,
    "urllib.request.urlopen": 3,
    "httpx.get": None,
    "httpx.post": None,
    "httpx.Client": None,
    "httpx.AsyncClient": None,
    "requests.get": None,
    "requests.post": None,
    "socket.create_connection": 2,
}


def unbounded_waits(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that may wait for ever and does not say why."""
    lines = source.splitlines()
    tree = ast.parse(source)
    variables = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func).startswith(("ContextVar", "contextvars.ContextVar"))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if ast.unparse(node.func.value) in variables:
            continue
        told = any(
            ALLOWED in lines[number - 1]
            for number in range(max(1, node.lineno - 1), (node.end_lineno or node.lineno) + 1)
        )
        if not told and _waits(node, ast.unparse(node.func), awaited=id(node) in awaited):
            yield node.lineno, ast.unparse(node)[:100]


def _waits(node: ast.Call, name: str, *, awaited: bool) -> bool:
    named = {keyword.arg for keyword in node.keywords}
    if named & {"timeout", "timeout_s", "deadline_s", "block", None}:
        return False
    if name in MODULE_CALLS:
        enough = MODULE_CALLS[name]
        return enough is None or len(node.args) < enough
    method = name.rpartition(".")[2]
    if method == "get" and not node.args and not node.keywords:  # a queue's: a mapping's has a key
        return not awaited
    if awaited or method not in TIMED:
        return False
    if method == "communicate":
        return len(node.args) < TIMED[method]
    return not node.args  # " ".join(words), thread.join(5), condition.wait(5) have one


@pytest.mark.parametrize("package", PACKAGES)
def test_every_wait_has_a_deadline(package: str):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in modules(package)
        for line, text in unbounded_waits(path.read_text(encoding="utf-8"))
    ]
    assert found == [], f"give a timeout, or say '# {ALLOWED} what ends it' on that line"


@pytest.mark.parametrize(
    "call",
    [
        "ray.get(ref)",
        "ray.wait(refs)",
        "process.wait()",
        "process.communicate(data)",
        "thread.join()",
        "future.result()",
        "queue.get()",
        "lock.acquire()",
        "subprocess.run(['ls'])",
        "urllib.request.urlopen(url)",
        "httpx.post(url)",
        "httpx.AsyncClient()",
    ],
)
def test_a_wait_without_a_deadline_is_found(call: str):
    assert [text for _, text in unbounded_waits(call)] == [call]


@pytest.mark.parametrize(
    "call",
    [
        "ray.get(ref, timeout=3)",
        "process.wait(5)",
        "process.wait(timeout=5)",
        "','.join(words)",
        "future.result(0)",
        "mapping.get('key')",
        "queue.get(timeout=1)",
        "thread.join()  # waits: for a thread that sleeps 1 s at most",
        "# waits: the caller has a deadline\nawait_for.wait()",
    ],
)
def test_a_wait_with_a_deadline_or_a_reason_is_left_alone(call: str):
    assert list(unbounded_waits(call)) == []


def test_coroutines_are_bounded_where_they_are_run():
    assert list(unbounded_waits("async def f():\n    await event.wait()")) == []
