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
# opset: IR version that came with it, up to the newest that onnxruntime runs
IR_VERSIONS = {
    **{OPSET: IR_VERSION, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10},
    **{23: 11, 24: 12, 25: 13, 26: 13, 27: 13, 28: 14},
}
INPUTS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
NUMBERS = {np.dtype("<f4"): TensorProto.FLOAT, np.dtype("<i8"): TensorProto.INT64}


def write_onnx(
    model: SdResNet,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    input: str = "float32",
    softmax: bool = False,
    top: int = 0,
    batch: int | None = None,
    opset: int = OPSET,
) -> None:
    """Write the network, as it evaluates, to an ONNX file (paper, section 3, equation 5).

    The graph maps ``images`` [batch, channels, H, W] to ``logits`` [batch, classes], float32.

    Args:
        model: A network of the zoo, created by ``timm.create_model``.
        path: The file; it appears complete or not at all.
        size: H and W, each at least 8; by default those of the network's configuration.
        input: ``"float32"`` for images normalised by the mean and std in the metadata, or ``"uint8"`` for raw
            pixels, which the graph then normalises itself.
        softmax: Add ``probabilities`` [batch, classes] to the outputs.
        top: Add ``top_probabilities`` and ``top_classes`` [batch, top] to the outputs, the most probable first, for a
            number of classes from 1; 0 adds none.
        batch: The only number of images the graph takes at a time; by default any.
        opset: Version of ONNX's operators, from 17, which the oldest runtimes read, to 28.

    Raises:
        InputError: An argument is outside its range, or the network cannot be exported (see ``fold``).
    """
    proto = build(model, size=size, input=input, softmax=softmax, top=top, batch=batch, opset=opset)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def build(
    model: SdResNet,
    *,
    size: tuple[int, int] | None = None,
    input: str = "float32",
    softmax: bool = False,
    top: int = 0,
    batch: int | None = None,
    opset: int = OPSET,
) -> ModelProto:
    """Return the graph that ``write_onnx`` writes."""
    metadata = Metadata.of(model)
    H, W = size or configuration(model)["input_size"][1:]
    if input not in INPUTS:
        raise InputError(f"input is {input!r}, must be one of {', '.join(INPUTS)}")
    if min(H, W) < MIN_SIZE:
        raise InputError(f"size is {H} x {W}, each must be at least {MIN_SIZE}")
    if not 0 <= top <= model.num_classes:
        raise InputError(f"top is {top}, must be from 0 to the number of classes, {model.num_classes}")
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}, must be at least 1")
    if opset not in IR_VERSIONS:
        raise InputError(f"opset is {opset}, must be from {min(IR_VERSIONS)} to {max(IR_VERSIONS)}")

    graph = _Graph(metadata, opset, batch or "batch")
    x = graph.input("images", INPUTS[input], [model.in_chans, H, W])
    if input == "uint8":
        x = graph.centred(x, metadata.mean)
        net = fold(model, input_divisor=[255 * std for std in metadata.std])
    else:
        net = fold(model)
    x = graph.network(net, x)
    graph.output("logits", TensorProto.FLOAT, [model.num_classes])
    if softmax or top:
        x = graph.node("Softmax", "probabilities", x, axis=1)
    if softmax:
        graph.output("probabilities", TensorProto.FLOAT, [model.num_classes])
    if top:
        graph.top(x, top)
    return graph.model


class _Graph:
    """A graph under construction; every method that adds a node returns the name of its output."""

    def __init__(self, metadata: Metadata, opset: int, batch: int | str) -> None:
        self.batch = batch
        self.model = ModelProto(
            ir_version=IR_VERSIONS[opset],
            producer_name=PRODUCER,
            producer_version=metadata.version,
            opset_import=[helper.make_opsetid("", opset)],
            metadata_props=[StringStringEntryProto(key=key, value=value) for key, value in metadata.encode().items()],
        )
        self.proto = self.model.graph
        self.proto.name = metadata.name

    def input(self, name: str, kind: int, shape: Sequence[int]) -> str:
        self.proto.input.append(helper.make_tensor_value_info(name, kind, [self.batch, *shape]))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int]) -> None:
        self.proto.output.append(helper.make_tensor_value_info(name, kind, [self.batch, *shape]))

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

    def top(self, probabilities: str, k: int) -> None:
        """Put out the k largest probabilities and their classes, the largest first."""
        kinds = {"top_probabilities": TensorProto.FLOAT, "top_classes": TensorProto.INT64}
        inputs = probabilities, self.tensor("top", np.array([k], dtype="<i8"))
        self.proto.node.append(helper.make_node("TopK", inputs, list(kinds), name="top"))
        for name, kind in kinds.items():
            self.output(name, kind, [k])

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
