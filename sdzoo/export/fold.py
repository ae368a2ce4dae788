"""Folding: batch normalisation and survival probabilities vanish into the convolutions (paper, section 3, eq. 5).

In evaluation block l is H_l = ReLU(p_l * f_l(H_{l-1}) + s(H_{l-1})) and normalisation has fixed statistics, so a
convolution, the normalisation after it and the factor p are one affine map:

    W' = p * gamma / sqrt(var + eps) * W        b' = p * (beta - gamma / sqrt(var + eps) * mean)

with p = p_l for the second convolution of a block and 1 for all others. All of it is float64 and uses
+ - * / sqrt only, which IEEE 754 defines to the bit, and is rounded to float32 once: the same weights fold to the
same bits on every processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sdzoo.errors import InputError
from sdzoo.models.blocks import ResidualBlock
from sdzoo.models.sd_resnet import SdResNet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Conv:
    """A 3x3 convolution with padding 1: weight [out, in, 3, 3], bias [out]."""

    name: str
    weight: Float32
    bias: Float32
    stride: int


@dataclass(frozen=True)
class Linear:
    """The classifier: weight [classes, features], bias [classes]."""

    name: str
    weight: Float32
    bias: Float32


@dataclass(frozen=True)
class Block:
    """H_l = ReLU(conv2(ReLU(conv1(H_{l-1}))) + s(H_{l-1})), p_l already inside conv2."""

    name: str
    conv1: Conv
    conv2: Conv

    @property
    def halves(self) -> bool:
        """Whether s is option A, which halves the resolution, instead of the identity."""
        return self.conv1.stride == 2

    @property
    def new_channels(self) -> int:
        """Zero channels that option A appends."""
        return len(self.conv2.bias) - int(self.conv1.weight.shape[1])


@dataclass(frozen=True)
class FoldedNet:
    """The whole network of evaluation: nothing but convolutions, sums, and one linear map."""

    stem: Conv
    blocks: tuple[Block, ...]
    head: Linear


def fold(model: SdResNet, *, input_divisor: Sequence[float] | None = None) -> FoldedNet:
    """Return the folded network that computes what ``model`` computes in evaluation mode.

    Args:
        model: A network of the zoo with average pooling and a classifier.
        input_divisor: Numbers by which the input channels are still to be divided: 255 * std for raw pixels whose
            255 * mean has been subtracted. They go into the first convolution.

    Raises:
        InputError: The network has no classifier, pools otherwise, or has weights that are not finite.
    """
    if not isinstance(model.fc, nn.Linear):
        raise InputError("the network has no classifier (num_classes is 0, or it was pruned): there are no logits")
    if model.global_pool.pool_type != "avg":
        raise InputError(f"global_pool is {model.global_pool.pool_type!r}, the ONNX graph has 'avg' only")
    divisor = np.ones(model.in_chans) if input_divisor is None else np.array(input_divisor, dtype=np.float64)
    return FoldedNet(
        stem=_conv("conv1", model.conv1, model.bn1, 1.0, divisor),
        blocks=tuple(
            _block(name, block, p_l) for (name, block), p_l in zip(_named_blocks(model), model.survival, strict=True)
        ),
        head=_linear("fc", model.fc),
    )


def _named_blocks(model: SdResNet) -> list[tuple[str, ResidualBlock]]:
    return [(name, block) for name, block in model.named_modules() if isinstance(block, ResidualBlock)]


def _block(name: str, block: ResidualBlock, p_l: float) -> Block:
    return Block(
        name,
        _conv(f"{name}.conv1", block.conv1, block.bn1),
        _conv(f"{name}.conv2", block.conv2, block.bn2, p_l),
    )


def _conv(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, p: float = 1.0, divisor: Float64 | None = None) -> Conv:
    """Fold p, the normalisation and the division of the input into one convolution."""
    W = _float64(conv.weight)
    gamma, beta = _float64(norm.weight), _float64(norm.bias)
    mean, var = _float64(norm.get_buffer("running_mean")), _float64(norm.get_buffer("running_var"))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # _rounded looks at what comes out
        scale = gamma / np.sqrt(var + norm.eps)
        W = (p * scale)[:, None, None, None] * W
        if divisor is not None:
            W = W / divisor[:, None, None]
        b = p * (beta - scale * mean)
        return Conv(name, _rounded(f"{name}.weight", W), _rounded(f"{name}.bias", b), conv.stride[0])


def _linear(name: str, linear: nn.Linear) -> Linear:
    weight, bias = _float64(linear.weight), _float64(linear.bias)
    return Linear(name, _rounded(f"{name}.weight", weight), _rounded(f"{name}.bias", bias))


def _float64(tensor: Tensor) -> Float64:
    array: Float64 = tensor.detach().double().cpu().numpy()
    return array


def _rounded(name: str, array: Float64) -> Float32:
    """Round to float32, little-endian whatever the machine."""
    rounded = array.astype("<f4")
    if not np.isfinite(rounded).all():
        raise InputError(f"{name}, with its normalisation folded in, has values that are not finite")
    return rounded
