"""The ONNX graph, written straight from the folded network.

Every name follows the parameter it comes from (``layer2.0.conv1``), operator set, IR version and producer are fixed
here, and nothing depends on the time, the folder or the order of a hash: the same weights give the same bytes.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

from sdzoo.errors import InputError
from sdzoo.export.fold import Block, Conv, FoldedNet, Linear, fold
from sdzoo.files import replacing
from sdzoo.metadata import PRODUCER, Metadata, configuration
from sdzoo.models.sd_resnet import MIN_SIZE, SdResNet

OPSET = 17
IR_VERSION = 8  # the newest that every runtime of opset 17 reads
INPUTS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
NUMBERS = {np.dtype("<f4"): TensorProto.FLOAT, np.dtype("<i8"): TensorProto.INT64}


def write_onnx(
    model: SdResNet,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    input: str = "float32",
    softmax: bool = False,
) -> None:
    """Write the network, as it evaluates, to an ONNX file (paper, section 3, equation 5).

    The graph maps ``images`` [batch, channels, H, W] to ``logits`` [batch, classes], float32; batch is free.

    Args:
        model: A network of the zoo, created by ``timm.create_model``.
        path: The file; it appears complete or not at all.
        size: H and W, each at least 8; by default those of the network's configuration.
        input: ``"float32"`` for images normalised by the mean and std in the metadata, or ``"uint8"`` for raw
            pixels, which the graph then normalises itself.
        softmax: Add ``probabilities`` [batch, classes] to the outputs.

    Raises:
        InputError: An argument is outside its range, or the network cannot be exported (see ``fold``).
    """
    proto = build(model, size=size, input=input, softmax=softmax)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def build(
    model: SdResNet, *, size: tuple[int, int] | None = None, input: str = "float32", softmax: bool = False
) -> ModelProto:
    """Return the graph that ``write_onnx`` writes."""
    if input not in INPUTS:
        raise InputError(f"input is {input!r}, must be one of {', '.join(INPUTS)}")
    metadata = Metadata.of(model)
    H, W = size or configuration(model)["input_size"][1:]
    if min(H, W) < MIN_SIZE:
        raise InputError(f"size is {H} x {W}, each must be at least {MIN_SIZE}")

    graph = _Graph(metadata)
    x = graph.input("images", INPUTS[input], ["batch", model.in_chans, H, W])
    if input == "uint8":
        x = graph.centred(x, metadata.mean)
        net = fold(model, input_divisor=[255 * std for std in metadata.std])
    else:
        net = fold(model)
    x = graph.network(net, x)
    graph.output("logits", ["batch", model.num_classes])
    if softmax:
        graph.node("Softmax", "probabilities", x, axis=1)
        graph.output("probabilities", ["batch", model.num_classes])
    return graph.model


class _Graph:
    """A graph under construction; every method that adds a node returns the name of its output."""

    def __init__(self, metadata: Metadata) -> None:
        self.model = ModelProto(
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
            producer_version=metadata.version,
            opset_import=[helper.make_opsetid("", OPSET)],
            metadata_props=[StringStringEntryProto(key=key, value=value) for key, value in metadata.encode().items()],
        )
        self.proto = self.model.graph
        self.proto.name = metadata.name

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.proto.input.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        self.proto.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        self.proto.initializer.add(
            name=name, data_type=NUMBERS[array.dtype], dims=array.shape, raw_data=array.tobytes()
        )
        return name

    def node(self, op_type: str, output: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        self.proto.node.append(helper.make_node(op_type, inputs, [output], name or output, **attributes))
        return output

    def centred(self, pixels: str, mean: Sequence[float]) -> str:
        """Subtract 255 * mean, before any convolution pads with zeros."""
        offset = np.array([255 * channel for channel in mean]).astype("<f4").reshape(1, -1, 1, 1)
        floats = self.node("Cast", "pixels", pixels, to=TensorProto.FLOAT)
        return self.node("Sub", "centred", floats, self.tensor("pixel_mean", offset))

    def network(self, net: FoldedNet, x: str) -> str:
        x = self.node("Relu", "act1", self.conv(net.stem, x))
        for block in net.blocks:
            x = self.block(block, x)
        x = self.node("GlobalAveragePool", "global_pool.pool", x)
        x = self.node("Flatten", "global_pool.flatten", x, axis=1)
        return self.linear(net.head, x, "logits")

    def block(self, block: Block, x: str) -> str:
        residual = self.node("Relu", f"{block.name}.relu1", self.conv(block.conv1, x))
        residual = self.conv(block.conv2, residual)
        shortcut = self.shortcut(block, x) if block.halves else x
        total = self.node("Add", f"{block.name}.add", residual, shortcut)
        return self.node("Relu", f"{block.name}.relu2", total)

    def shortcut(self, block: Block, x: str) -> str:
        """Option A. It pads the channels first, so that onnxruntime fuses the sum after it into a convolution."""
        name = f"{block.name}.shortcut"
        pads = np.array([0, 0, 0, 0, 0, block.new_channels, 0, 0], dtype="<i8")  # begin, then end, of N C H W
        x = self.node("Pad", f"{name}.pad", x, self.tensor(f"{name}.pads", pads), mode="constant")
        return self.node("AveragePool", name, x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)

    def conv(self, conv: Conv, x: str) -> str:
        inputs = x, self.tensor(f"{conv.name}.weight", conv.weight), self.tensor(f"{conv.name}.bias", conv.bias)
        geometry: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [conv.stride, conv.stride]}
        return self.node("Conv", conv.name, *inputs, **geometry)

    def linear(self, head: Linear, x: str, output: str) -> str:
        weight, bias = self.tensor(f"{head.name}.weight", head.weight), self.tensor(f"{head.name}.bias", head.bias)
        return self.node("Gemm", output, x, weight, bias, name=head.name, transB=1)
