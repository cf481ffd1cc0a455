"""A compiler that refuses code which talks to other ranks.

A collective fills a tensor that it is given. Traced as part of an autograd function's backward
pass, what it writes is lost (torch 2.11), and without a word gradients are what memory held before.
Nothing in a compiled part of a layer talks; a layer of the user's own may.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

Compiler = Callable[[GraphModule, Sequence[Tensor]], Any]


@cache
def sealed(backend: str) -> Compiler:
    """The compiler named ``backend``; of one name always the same, by which torch knows its code.

    It raises ``RuntimeError`` for code with a collective in it.
    """
    # Imported here, for it takes long and a CPU compiles nothing.
    compile_graph: Any = importlib.import_module("torch._dynamo").lookup_backend(backend)

    def compile_sealed(graph: GraphModule, inputs: Sequence[Tensor]) -> Any:
        if found := sorted(set(_collectives(graph))):
            raise RuntimeError(
                f"a layer talks to other ranks ({', '.join(found)}) in code that is to be "
                "compiled, which would lose gradients: wrap the function that does so in "
                "torch.compiler.disable, or train with --no-compile-layers"
            )
        return compile_graph(graph, inputs)

    return compile_sealed


def _collectives(graph: GraphModule) -> Iterator[str]:
    """Names of the operators that collectives of ``torch.distributed`` become when traced."""
    for part in graph.modules():
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                library, _, name = str(node.target).partition(".")
                if "c10d" in library:
                    yield name
