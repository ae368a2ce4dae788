"""From a checkpoint to an ONNX file that is proven to compute the same."""

from sdzoo.export.fold import fold
from sdzoo.export.graph import write_onnx

__all__ = ["fold", "write_onnx"]
