"""Which layers have experts, the way Megatron's --moe-layer-freq spells it: ``[0]*3+[1]*58``."""

import ast
from typing import Any

_MOST = 100_000
"""Items of a list that are written out."""


def read_pattern(value: Any) -> Any:
    """Return the list that a text stands for; anything else, and any other text, as it is.

    Lists, numbers, ``+`` and ``*`` are read; nothing is run.
    """
    if not isinstance(value, str) or "[" not in value:
        return value
    try:
        return _value(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return value


def written_out(value: Any, num_layers: int) -> Any:
    """Return a pattern as a list with one number per layer: N stands for every N-th one.

    Anything that is neither a number nor a list is returned as it is.
    """
    pattern = read_pattern(value)
    number = int(pattern) if isinstance(pattern, str) and pattern.isdecimal() else pattern
    if isinstance(number, int) and number > 0:
        return [int(layer % number == 0) for layer in range(num_layers)]
    return pattern


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.List(elts=items) if not any(isinstance(item, ast.List) for item in items):
            return [int(_value(item)) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _times(_value(left), _value(right))
        case _:
            raise ValueError(ast.dump(node))


def _times(left: Any, right: Any) -> Any:
    sizes = [len(side) if isinstance(side, list) else side for side in (left, right)]
    if sizes[0] * sizes[1] > _MOST:
        raise ValueError("more layers than any model has")
    return left * right
