"""A block cut at its residual sums: each branch becomes a function that need not be called.

Whatever only a DropPath's sum needs is its branch f; the other operand of the sum is the shortcut. In the block's
forward one call decides for the path, ``residual(block, index, shortcut, *inputs of f)``.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import Parameter

from sdzoo.models.skip_class import original_class
from sdzoo.models.skip_source import function_of
from sdzoo.models.skip_trace import (
    CannotConvertError,
    drop_path_nodes,
    follow_to_sum,
    is_constant,
    reads_shapes,
    remove_dead_code,
    trace,
)


@dataclass(frozen=True)
class Path:
    """One residual path of a block.

    Attributes:
        drop_path: Name of its DropPath in the block.
        call: Which call of that DropPath it is, counted from 0; a shared one has several.
        branch: ``branch(block, shortcut, scale, *inputs)`` returns shortcut + scale * f(inputs).
        inputs: Names of the inputs of f.
        owned: Names of the modules and parameters that f uses.
        fresh: Whether the block writes into the sum, so that a closed path must not hand on the shortcut itself.
    """

    drop_path: str
    call: int
    branch: Callable[..., Tensor]
    inputs: tuple[str, ...]
    owned: tuple[str, ...]
    fresh: bool

    def parameters(self, block: nn.Module) -> list[Parameter]:
        """Return the parameters of f in this block."""
        return [parameter for name in self.owned for parameter in _parameters(operator.attrgetter(name)(block))]


@dataclass(frozen=True)
class Plan:
    """A block's training forward: ``forward(block, *inputs)`` asks once for each of its paths.

    It holds for calls with the given constants; the inputs are the other arguments.

    Attributes:
        left: Why some of the block's DropPaths stay as timm's.
        by_shape: Whether it holds for inputs of certain shapes only.
    """

    constants: tuple[tuple[str, Any], ...]
    forward: Callable[..., Any]
    inputs: tuple[str, ...]
    paths: tuple[Path, ...]
    left: tuple[str, ...]
    by_shape: bool


def plan_of(
    block: nn.Module,
    residual: Callable[..., Tensor],
    constants: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Plan:
    """Trace a block and cut it at its residual sums.

    Args:
        block: A module with DropPaths of its own.
        residual: What the new forward calls in place of each sum.
        constants: Arguments of the block's forward that decide what it does (None, True, False); default: those
            whose default value is such a constant.
        values: The arguments of a call, for a block that decides on their shapes.

    Raises:
        CannotConvertError: torch.fx cannot trace the block.
    """
    constants = _default_constants(block) if constants is None else constants
    graph, by_shape = trace(block, constants, values)
    inputs = tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))
    cuts = _Cuts(graph, block, residual)
    left = tuple(reason for node in drop_path_nodes(graph, block) if (reason := cuts.try_to_cut(node)))
    remove_dead_code(graph)
    signature = tuple((name, *parameter.shape) for name, parameter in block.named_parameters())
    forward, paths = function_of(graph, signature), tuple(cuts.paths(signature))
    return Plan(tuple(constants.items()), forward, inputs, paths, left, by_shape)


def _default_constants(block: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(original_class(block).forward).parameters
    return {name: parameter.default for name, parameter in parameters.items() if is_constant(parameter.default)}


class _Cuts:
    """The branches cut out of one block's graph so far."""

    def __init__(self, graph: fx.Graph, block: nn.Module, residual: Callable[..., Tensor]) -> None:
        self.graph = graph
        self.block = block
        self.residual = residual
        with graph.inserting_before(next(iter(graph.nodes))):
            self.block_node = graph.create_node("placeholder", "self", name="block")
        self.calls: Counter[str] = Counter()
        self.branches: list[tuple[str, int, fx.Graph, fx.Node]] = []

    def try_to_cut(self, drop_path: fx.Node) -> str | None:
        """Cut one path, or return why it cannot be."""
        try:
            self.cut(drop_path)
        except CannotConvertError as reason:
            return str(reason)
        finally:
            self.calls[str(drop_path.target)] += 1
        return None

    def cut(self, drop_path: fx.Node) -> None:
        """Move the branch of one DropPath out of the graph, and put the call of ``residual`` where its sum was."""
        term, total = follow_to_sum(drop_path, self.block)
        (shortcut,) = [operand for operand in total.all_input_nodes if operand is not term]
        inside = self._needed_only_by(term)
        body = self._with_shape_reads(inside)
        if not _owned(node for node in inside if node is not drop_path):
            raise CannotConvertError(f"what {drop_path.target} drops is used elsewhere too")
        inputs = [node for node in _inputs_of(body) if node is not self.block_node]
        branch = self._branch(body, inputs, drop_path, term)
        with self.graph.inserting_before(total):
            call = self.graph.call_function(self.residual, (self.block_node, len(self.branches), shortcut, *inputs))
        call.meta["owned"] = _owned(node for node in body if node is not drop_path)
        total.replace_all_uses_with(call)
        for node in [total, *reversed([node for node in body if node in inside])]:
            self.graph.erase_node(node)
        name = str(drop_path.target)
        self.branches.append((name, self.calls[name], branch, call))

    def paths(self, signature: tuple[Any, ...]) -> Iterable[Path]:
        """Return the finished paths."""
        for drop_path, count, branch, call in self.branches:
            _, _, _, *inputs = branch.find_nodes(op="placeholder")
            yield Path(
                drop_path,
                count,
                function_of(branch, signature),
                tuple(str(node.target) for node in inputs),
                call.meta["owned"],
                any(_writes(user, self.block) for user in call.users),
            )

    def _needed_only_by(self, term: fx.Node) -> set[fx.Node]:
        inside = {term}
        for node in reversed(self.graph.nodes):
            if node.op != "placeholder" and node.users and inside.issuperset(node.users):
                inside.add(node)
        return inside

    def _with_shape_reads(self, inside: set[fx.Node]) -> list[fx.Node]:
        """Add the parameters and shapes that others read too: a branch reads them for itself."""
        body = set(inside)
        for node in reversed(self.graph.nodes):
            if not body.isdisjoint(node.users) and _only_reads(node):
                body.add(node)
        return [node for node in self.graph.nodes if node in body]

    def _branch(self, body: list[fx.Node], inputs: list[fx.Node], drop_path: fx.Node, term: fx.Node) -> fx.Graph:
        graph = fx.Graph()
        here = {self.block_node: graph.create_node("placeholder", "self", name="block")}
        shortcut, scale = graph.placeholder("shortcut"), graph.placeholder("scale")
        here |= {node: graph.placeholder(node.name) for node in inputs}
        for node in body:
            if node is drop_path:
                here[node] = graph.call_function(scaled, (here[node.all_input_nodes[0]], scale))
            else:
                here[node] = graph.node_copy(node, here.__getitem__)
        graph.output(graph.call_function(joined, (shortcut, here[term])))
        return graph


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    """Return x times 1/p as DropPath scales it, or x itself."""
    return x if scale is None else x * scale


def joined(shortcut: Tensor | None, branch: Tensor) -> Tensor:
    """Return the residual sum, or the branch alone where there is no shortcut."""
    return branch if shortcut is None else shortcut + branch


def _only_reads(node: fx.Node) -> bool:
    return node.op == "get_attr" or reads_shapes(node)


def _inputs_of(body: list[fx.Node]) -> list[fx.Node]:
    members = set(body)
    return list(dict.fromkeys(n for node in body for n in node.all_input_nodes if n not in members))


def _owned(body: Iterable[fx.Node]) -> tuple[str, ...]:
    names: list[str] = []
    for node in body:
        names += [str(node.target)] if node.op in ("call_module", "get_attr") else node.meta.get("owned", ())
    return tuple(dict.fromkeys(names))


def _writes(node: fx.Node, block: nn.Module) -> bool:
    """Whether a node writes into its input."""
    if node.op == "call_module":
        return bool(getattr(block.get_submodule(str(node.target)), "inplace", False))
    return node.target is operator.iadd or str(node.target).endswith("_")


def _parameters(value: Any) -> Iterable[Parameter]:
    if isinstance(value, nn.Module):
        return value.parameters()
    return [value] if isinstance(value, Parameter) else []
