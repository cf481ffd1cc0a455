"""A conversation with a calculator: the model calls, the tool answers, until the model does."""

import ast
import json
import operator
import re
from typing import Any

from slime_core.types import Sample
from slime_sglang import generate_single

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_BOXED = re.compile(r"\\boxed\{(.*?)\}")


def calculate(expression: str) -> str:
    """The value of an expression of whole numbers with +, - and *; what is wrong otherwise."""
    try:
        return str(_value(ast.parse(expression, mode="eval").body))
    except (ValueError, SyntaxError):
        return f"error: cannot calculate {expression[:40]}"


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError(type(node).__name__)


def execute_tool(call: dict[str, Any]) -> str:
    """What the tool says to a call that the parser found."""
    return calculate(str(json.loads(call["function"]["arguments"]).get("expression")))


def compute_reward(sample: Sample) -> float:
    """1 for the right number in the box of the last turn."""
    found = _BOXED.findall(sample.response)
    return float(bool(found) and found[-1] == str(sample.label))


async def custom_generate(args: Any, samples: list[Sample], evaluation: bool = False) -> Any:
    """Multi-turn generation with tool calling."""
    for sample in samples:
        conversation: Any = sample.prompt
        calls = 0
        for _ in range(args.max_turns):
            response = await generate_single(conversation)
            if not response.tool_calls:
                break
            conversation.append({"role": "assistant", "content": response})
            for call in response.tool_calls:
                conversation.append({"role": "tool", "content": execute_tool(call)})
                calls += 1
        sample.response = response
        sample.reward = compute_reward(sample)
        sample.metadata["num_calls"] = calls
    return samples
