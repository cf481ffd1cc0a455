"""Which layers have experts, the way Megatron's --moe-layer-freq spells it: ``[0]*3+[1]*58``."""

import ast
from typing import Any


def read_pattern(value: Any) -> Any:
    """Return the list that a text stands for; anything else, and any other text, as it is.

    Lists, numbers, ``+`` and ``*`` are read; nothing is run.
    """
    if not isinstance(value, str) or "[" not in value:
        return value
    try:
        return _value(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError):
        return value


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case _:
            raise ValueError(ast.dump(node))
