"""Functions from torch.fx graphs, one for all blocks whose source and parameter shapes are the same.

torch.compile keeps its graphs by code object. Shared by equal blocks, a branch is compiled once for all of them; not
shared with others, it stays within the limit of recompilations.
"""

from collections.abc import Callable, Hashable
from typing import Any

from torch import fx

_functions: dict[Hashable, Callable[..., Any]] = {}


def function_of(graph: fx.Graph, signature: Hashable) -> Callable[..., Any]:
    """Return ``f(block, *inputs)`` that does what the graph says.

    Args:
        graph: A graph whose first placeholder is ``self``.
        signature: What else than the source must agree for two blocks to share the function.
    """
    code = graph.python_code("self")
    key = (code.src, tuple((name, id(value)) for name, value in code.globals.items()), signature)
    if key not in _functions:
        scope = dict(code.globals)
        exec(compile(code.src, f"<sdzoo branch {len(_functions)}>", "exec"), scope)
        _functions[key] = scope["forward"]
    return _functions[key]
