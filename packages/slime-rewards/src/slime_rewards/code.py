"""Programs are run against tests: ``--rm-type code``.

What is run is asked for in ``programs``; what a program should print is known here alone.
"""

import contextlib
import functools
import json
import re
from typing import Any

from slime_rewards.programs import Job, Run, Runner
from slime_rewards.verdict import Grade

_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_CASE_S = 4.0


def grader() -> Grade:
    """``grade`` with a process that runs programs; made before any test is known."""
    return functools.partial(_grade, Runner())


def grade(response: str, label: object, metadata: dict[str, Any]) -> float:
    """1 where the last Python block of the response passes every test, else 0.

    The tests are ``metadata["tests"]``, or the label as JSON or text: a list of
    ``{"input": ..., "output": ...}`` (standard input and output), ``{"inputs": [...], "outputs":
    [...]}``, ``{"asserts": [...]}``, or Python with asserts. A test has ``metadata["timeout"]``
    seconds, 4 by default; the deadline of the worker holds for all of them. Programs have a copy
    of this process's memory: where they must not find the tests there, use ``grader``.

    Raises:
        ValueError: there are no tests, or they have none of these forms.
    """
    return _grade(Runner(), response, label, metadata)


def _grade(runner: Runner, response: str, label: object, metadata: dict[str, Any]) -> float:
    program = extract(response)
    tests, timeout = metadata.get("tests"), metadata.get("timeout")
    asserts, cases = read_tests(label if tests is None else tests)
    seconds = _CASE_S if timeout is None else float(timeout)
    if not program.strip():
        return 0.0
    run = functools.partial(runner.run, seconds=seconds)
    if asserts is not None and run(Job(program=program, asserts=asserts)) is None:
        return 0.0
    return float(all(_answers(run, program, given, wanted) for given, wanted in cases))


def extract(response: str) -> str:
    """The last fenced block behind the thoughts; all of the text where there is none."""
    text = response.rpartition("</think>")[2]
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def read_tests(tests: object) -> tuple[str | None, list[tuple[str, str]]]:
    """Python with asserts, if any, and pairs of input and expected output; one of them at least.

    Raises:
        ValueError: there are no tests, or they have none of the forms of ``grade``.
    """
    asserts, cases = _read_tests(tests)
    if not cases and not (asserts or "").strip():
        raise ValueError(f"no tests in {tests!r:.100}: every program would pass")
    for number, texts in enumerate(cases, start=1):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"test {number} is {texts!r:.100}: input and output are text, what a program reads "
                "and prints; test functions with {'asserts'}"
            )
    return asserts, cases


def _read_tests(tests: object) -> tuple[str | None, list[tuple[Any, Any]]]:
    given = _parsed(tests) if isinstance(tests, str) else tests
    match given:
        case {"asserts": str(lines)}:
            return lines, []
        case {"asserts": lines}:
            return "\n".join(lines), []
        case {"inputs": inputs, "outputs": outputs}:
            return None, list(zip(inputs, outputs, strict=True))
        case [{"input": _, "output": _}, *_] if all(map(_is_case, given)):
            return None, [(case["input"], case["output"]) for case in given]
        case [str(), *_] if all(isinstance(line, str) for line in given):
            return "\n".join(given), []
        case _:
            raise ValueError(
                f"no tests in {tests!r:.100}: give metadata['tests'] or a label that is a list of "
                "{'input', 'output'}, {'inputs', 'outputs'}, {'asserts'} or Python with asserts"
            )


def _parsed(text: str) -> object:
    """JSON, or else Python with asserts."""
    with contextlib.suppress(json.JSONDecodeError):
        if isinstance(found := json.loads(text), dict | list):
            return found
    return {"asserts": [text]} if text.strip() else None


def _is_case(item: object) -> bool:
    return isinstance(item, dict) and {"input", "output"} <= item.keys()


def _answers(run: Run, program: str, given: str, wanted: str) -> bool:
    output = run(Job(program=program, given=given))
    return output is not None and _same(output.decode(errors="replace"), wanted)


def _same(output: str, wanted: str) -> bool:
    """Lines without blanks at their ends, then words, numbers by value."""
    if [line.rstrip() for line in output.rstrip().splitlines()] == [
        line.rstrip() for line in wanted.rstrip().splitlines()
    ]:
        return True
    words, expected = output.split(), wanted.split()
    return len(words) == len(expected) and all(map(_close, words, expected))


def _close(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if "." not in expected:
        return False
    try:
        return abs(float(word) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
    except ValueError:
        return False
