"""A block's forward as a graph, and where its residual paths are: ``x + drop_path(f(x))`` (paper, section 3).

torch.fx records what the block does. Modules that it calls stay whole, with their hooks, flags and names.
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import DropPath
from timm.models._features_fx import get_notrace_functions
from torch import fx, nn
from torch.fx.node import map_arg

from sdzoo.models.skip_class import original_class

ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
# What may stand between a DropPath and its sum: it maps zero to zero, so that a closed path may leave it out too.
SHAPE_CHANGES = {"contiguous", "flatten", "permute", "reshape", "transpose", "unflatten", "view", "window_unpartition"}
ARITHMETIC = {function for function in vars(operator).values() if callable(function)}
SHAPE_READS = {"dim", "ndim", "shape", "size"}
SCALES = {"Identity", "LayerScale", "LayerScale2d", "Scale"}


class CannotConvertError(ValueError):
    """A block has no residual path that can be skipped; the message is the reason."""


def drop_paths_of(block: nn.Module) -> dict[str, DropPath]:
    """Return the DropPaths that a module calls itself, by name; those in its own Sequentials count as its own."""
    found = {}
    for name, child in block.named_children():
        if isinstance(child, DropPath):
            found[name] = child
        elif isinstance(child, nn.Sequential | nn.ModuleList):
            found |= {f"{name}.{inner}": drop_path for inner, drop_path in drop_paths_of(child).items()}
    return found


def is_constant(value: Any) -> bool:
    """Whether a forward may decide on such an argument: None or a truth value."""
    return value is None or isinstance(value, bool)


def trace(block: nn.Module, constants: Mapping[str, Any], values: Mapping[str, Any] | None) -> tuple[fx.Graph, bool]:
    """Return the block's forward without its assertions, and whether it decides on the shapes of its inputs.

    Args:
        block: The block, seen in training mode whatever its mode is.
        constants: Arguments that are fixed.
        values: The arguments of a call, on whose shapes to decide; None: any decision will do.

    Raises:
        CannotConvertError: torch.fx cannot trace it.
    """
    tracer = _Tracer(constants, values)
    try:
        with _as_trained(block):
            graph = tracer.trace(block)
    except Exception as error:  # whatever the traced code raises on being given proxies
        raise CannotConvertError(f"torch.fx cannot trace it ({str(error).splitlines()[0]})") from error
    _tidy(graph)
    return graph, tracer.decided


@contextmanager
def _as_trained(block: nn.Module) -> Iterator[None]:
    """Show the block as its own class and in training mode."""
    current, training = type(block), block.training
    block.__class__, block.training = original_class(block), True
    try:
        yield
    finally:
        block.__class__, block.training = current, training


class _Tracer(fx.Tracer):
    """Traces one block; its submodules are leaves, but for a Sequential that holds a DropPath of the block."""

    trace_asserts = True
    proxy_buffer_attributes = True

    def __init__(self, constants: Mapping[str, Any], values: Mapping[str, Any] | None) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.constants = constants
        self.values = values
        self.decided = False

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide on a comparison of shapes."""
        if not reads_shapes(obj.node):
            return super().to_bool(obj)
        self.decided = True
        return self.values is None or bool(_value(obj.node, self.values))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not (isinstance(m, nn.Sequential) and drop_paths_of(m))

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Hand the constants in as they are: a proxy for None would be taken for a tensor."""
        _, *names = inspect.signature(root_fn).parameters
        arguments = [
            self.constants[name] if name in self.constants else self.create_proxy("placeholder", name, (), {})
            for name in names
        ]
        return root_fn, [self.root, *arguments]


def reads_shapes(node: fx.Node) -> bool:
    """Whether a node computes with nothing but shapes."""
    if node.op == "call_method":
        return node.target in SHAPE_READS
    if node.target is getattr:
        return node.args[1] in SHAPE_READS
    is_arithmetic = node.op == "call_function" and node.target in ARITHMETIC
    return is_arithmetic and all(map(reads_shapes, node.all_input_nodes))


def _value(node: fx.Node, values: Mapping[str, Any]) -> Any:
    if node.op == "placeholder":
        return values[str(node.target)]
    args: Any = map_arg(node.args, lambda operand: _value(operand, values))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:])
    return node.target(*args)  # type: ignore[operator]


def _tidy(graph: fx.Graph) -> None:
    """Remove assertions, which would keep a closed branch alive, and what only they need."""
    for node in graph.nodes:
        if node.op == "call_method" and str(node.target).endswith("_"):
            _use_result(node)
    for node in list(graph.nodes):
        if node.target is torch._assert:
            graph.erase_node(node)
    remove_dead_code(graph)


def _use_result(node: fx.Node) -> None:
    """Let what follows an in-place operation use its result, not the tensor it was called on."""
    changed = node.all_input_nodes[0]
    for user in list(changed.users):
        if node < user:
            user.replace_input_with(changed, node)


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove the nodes that nothing needs."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target is operator.setitem)


def drop_path_nodes(graph: fx.Graph, block: nn.Module) -> list[fx.Node]:
    """Return the calls of the block's DropPaths, in order; a shared DropPath is called more than once."""
    ours = set(drop_paths_of(block).values())
    return [node for node in graph.find_nodes(op="call_module") if block.get_submodule(str(node.target)) in ours]


def follow_to_sum(drop_path: fx.Node, block: nn.Module) -> tuple[fx.Node, fx.Node]:
    """Return the operand that comes from a DropPath and the sum it goes into.

    Raises:
        CannotConvertError: Something stands in between, or the result is not used just once.
    """
    node = drop_path
    while True:
        users = [user for user in node.users if not reads_shapes(user)]
        if len(users) != 1:
            raise CannotConvertError(f"the result of {drop_path.target} is used {len(users)} times, must be once")
        (user,) = users
        if user.target in ADDS and len(user.all_input_nodes) == 2 and not user.kwargs:
            return node, user
        if not _keeps_zero(user, block):
            raise CannotConvertError(f"{user.name} stands between {drop_path.target} and a sum")
        node = user


def _keeps_zero(node: fx.Node, block: nn.Module) -> bool:
    if node.op == "call_module":
        return type(block.get_submodule(str(node.target))).__name__ in SCALES
    return (
        node.target in PRODUCTS
        or node.target is operator.getitem
        or getattr(node.target, "__name__", node.target) in SHAPE_CHANGES
    )
