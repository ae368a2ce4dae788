"""Smaller files: 8-bit integers or 16-bit floats in place of 32-bit floats.

``int8`` quantises every convolution and residual sum, statically: activations in 8 bits, weights in 7 bits with a scale
for each output channel. The eighth bit would be wrong on processors without VNNI, whose 16-bit partial sums overflow
silently: a file must answer the same on every processor. The range of each activation is the smallest and largest
value over the calibration images; entropy and percentiles did no better (sd_resnet20.fashion_mnist, 10,000 test images:
float32 93.58 %, smallest and largest 93.57, entropy 93.57, 99.999 % 93.64, 99.99 % 93.60).

onnxruntime does the work; the bytes depend on the graph and the images alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from sdzoo.errors import InputError
from sdzoo.files import replacing
from sdzoo.metadata import FLOAT32, PRODUCER
from sdzoo.pictures import BATCH, Picture, batched
from sdzoo.runtime import Classifier

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData

# The shortcuts of option A stay out: onnxruntime's average pool over integers is slower than the one over floats. So
# does the classifier: it costs nothing, and the logits keep their resolution.
INT8_OPERATORS = ["Conv", "Relu", "Add"]
# Raw pixels and probabilities would lose digits, and none of these has weights.
FP32_OPERATORS = ["Cast", "Sub", "Softmax", "TopK"]


@dataclass(frozen=True)
class Kind:
    """One way to shrink a graph.

    Attributes:
        convert: Makes the graph from the file, its classifier, calibration images, and nodes to leave in float32.
        calibrated: Whether it needs calibration images.
        float32: What stays in float32 in any case.
    """

    convert: Callable[[Path, Classifier, Sequence[Picture], Sequence[str]], ModelProto]
    calibrated: bool
    float32: str


def quantize(
    source: Path, target: Path, kind: str, *, calibration: Sequence[Picture] = (), keep: Sequence[str] = ()
) -> None:
    """Write a smaller file that answers nearly as the float32 file does; ``quality.measure`` tells how nearly.

    Args:
        source: A float32 file of sdzoo.
        target: The file to write; it appears complete or not at all.
        kind: ``"int8"`` or ``"fp16"``.
        calibration: Images as in training, for ``int8``.
        keep: Names of nodes to leave in float32.

    Raises:
        InputError: An unknown kind, a file that is none of sdzoo's float32 ones or has no such nodes, or no images.
    """
    check_kind(kind)
    classifier = Classifier(source, "cpu")
    if classifier.metadata.precision != FLOAT32:
        raise InputError(f"{source}: is {classifier.metadata.precision} already; give the float32 file")
    if KINDS[kind].calibrated and not calibration:
        raise InputError(f"{kind} needs images to calibrate with")
    _check_names(source, keep)
    proto = _sorted(KINDS[kind].convert(source, classifier, calibration, keep))
    del proto.graph.value_info[:]
    proto.producer_name = PRODUCER
    onnx.helper.set_model_props(proto, replace(classifier.metadata, precision=kind).encode())
    with replacing(target) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def check_kind(kind: str) -> None:
    """Raise InputError where there is no such kind."""
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")


def _check_names(source: Path, keep: Sequence[str]) -> None:
    names = {node.name for node in onnx.load(source).graph.node}
    for name in keep:
        if name not in names:
            raise InputError(f"{source}: has no node {name!r}; its convolutions are named like layer1.0.conv1")


def _int8(source: Path, classifier: Classifier, calibration: Sequence[Picture], keep: Sequence[str]) -> ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType

    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(onnx.load(source)),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=_ranges(source, classifier, calibration),
        nodes_to_quantize=[],
        nodes_to_exclude=list(keep),
        op_types_to_quantize=INT8_OPERATORS,
        extra_options={},
    )
    quantizer.quantize_model()
    proto: ModelProto = quantizer.model.model
    return proto


def _ranges(source: Path, classifier: Classifier, calibration: Sequence[Picture]) -> "TensorsData":
    """Return the smallest and largest value of every tensor, in three digits: processors differ in the seventh."""
    from onnxruntime.quantization import create_calibrator

    with TemporaryDirectory() as folder:
        calibrator = create_calibrator(source, INT8_OPERATORS, str(Path(folder, "augmented.onnx")))
        calibrator.collect_data(_Batches(classifier, calibration))
        ranges = calibrator.compute_data()
    for tensor in ranges.values():
        tensor.lowest, tensor.highest = _three_digits(tensor.lowest), _three_digits(tensor.highest)
    return ranges


def _three_digits(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array([f"{value.item():.3g}"], dtype=np.float32)


class _Batches:
    """Calibration images as onnxruntime reads them: one feed after the other, then None."""

    def __init__(self, classifier: Classifier, pictures: Sequence[Picture]) -> None:
        self.feeds: Iterator[dict[str, Any]] = (
            {"images": classifier.images(classifier.pixels(batch))}
            for batch in batched(pictures, classifier.batch or BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _fp16(source: Path, classifier: Classifier, calibration: Sequence[Picture], keep: Sequence[str]) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto: ModelProto = convert_float_to_float16(
        onnx.load(source), keep_io_types=True, op_block_list=FP32_OPERATORS, node_block_list=list(keep)
    )
    return proto


def _sorted(proto: ModelProto) -> ModelProto:
    """Put every node behind those it needs, as ONNX asks: onnxruntime appends the new ones at the end."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(proto)
    model.topological_sort()
    return proto


KINDS = {
    "int8": Kind(_int8, calibrated=True, float32="pools and classifier"),
    "fp16": Kind(_fp16, calibrated=False, float32="inputs and outputs"),
}
