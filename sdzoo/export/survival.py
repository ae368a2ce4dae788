"""Survival probabilities in an exported graph: multiplications by p_l that move into the weights before them.

H_l = p_l * f(x) + s(x) at test (paper, section 3, equation 5), and p_l * (W x + b) = (p_l W) x + p_l b. From the
multiplication the walk goes back over operations that only move numbers, to the last convolution, matrix product or
normalisation of the branch.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

SCOPE = "pkg.torch.onnx.class_hierarchy"
SOURCE = "OwnDropPath"
MOVES = {"Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# operation: places of the inputs that hold its scale and its offset
AFFINE = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}


def survival_products(proto: ModelProto) -> list[NodeProto]:
    """Return the multiplications by p_l, by the class of the module that torch's exporter noted for them."""
    return [
        node
        for node in proto.graph.node
        if node.op_type == "Mul" and any(p.key == SCOPE and SOURCE in p.value for p in node.metadata_props)
    ]


def fold_survival(proto: ModelProto, products: Sequence[NodeProto]) -> list[str]:
    """Move each p_l into the weights of its branch; return the names of the multiplications that must stay."""
    left = []
    for product in products:
        graph = _Graph(proto.graph)
        branch, p_l = graph.operands(product)
        weights = None if p_l is None or p_l.size != 1 else graph.weights_before(branch)
        if p_l is None or weights is None:
            left.append(product.name)
            continue
        for node, place in weights:
            graph.scale(node, place, float(p_l.item()))
        graph.remove(product, branch)
    _drop_unused(proto.graph)
    return left


class _Graph:
    """A graph with its producers and consumers at hand."""

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.weights = {tensor.name: tensor for tensor in proto.initializer}
        self.producers = {name: node for node in proto.node for name in node.output}
        self.uses = Counter(name for node in proto.node for name in node.input)
        self.uses.update(output.name for output in proto.output)

    def operands(self, node: NodeProto) -> tuple[str, NDArray[Any] | None]:
        """Return the operand of a sum or product that is computed, and the value of the other if it is known."""
        first, second = node.input
        if self.value(first) is not None:
            first, second = second, first
        return first, self.value(second)

    def value(self, name: str) -> NDArray[Any] | None:
        """Return a weight or a constant."""
        node = self.producers.get(name)
        is_constant = node is not None and node.op_type == "Constant" and node.attribute[0].name == "value"
        tensor = node.attribute[0].t if is_constant and node is not None else self.weights.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def weights_before(self, name: str) -> list[tuple[NodeProto, int]] | None:
        """Return the inputs to scale so that ``name`` is scaled: (node, place); None where it cannot be."""
        node = self.producers.get(name)
        if node is None or self.uses[name] != 1:
            return None
        if node.op_type in MOVES:
            return self.weights_before(node.input[0])
        if node.op_type in AFFINE:
            places = [place for place in AFFINE[node.op_type] if place < len(node.input) and node.input[place]]
            return [(node, place) for place in places] if all(node.input[p] in self.weights for p in places) else None
        constants = [place for place, operand in enumerate(node.input) if operand in self.weights]
        if node.op_type in ("Mul", "MatMul") and constants:
            return [(node, constants[0])]
        if node.op_type == "Add" and constants:
            before = self.weights_before(node.input[1 - constants[0]])
            return None if before is None else [(node, constants[0]), *before]
        return None

    def scale(self, node: NodeProto, place: int, p_l: float) -> None:
        """Give the node a weight of its own, p_l times the one it has: others may share that."""
        weight = numpy_helper.to_array(self.weights[node.input[place]])
        scaled = (weight.astype(np.float64) * p_l).astype(weight.dtype)
        name = f"{node.input[place]}.p_l.{node.output[0]}"
        self.proto.initializer.append(numpy_helper.from_array(scaled, name))
        node.input[place] = name

    def remove(self, product: NodeProto, branch: str) -> None:
        """Take a multiplication out: its operand, which nothing else reads, takes its result's name."""
        producer = self.producers[branch]
        producer.output[list(producer.output).index(branch)] = product.output[0]
        self.proto.node.remove(product)


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "Constant" and not used.intersection(node.output)]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
