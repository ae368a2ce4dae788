"""The residual block: H_l = ReLU(f_l(H_{l-1}) + s(H_{l-1})), f = Conv-BN-ReLU-Conv-BN (paper, section 3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter


class ShortcutA(nn.Module):
    """Shortcut of a block that halves the resolution, option A: no parameters, the new channels are zero.

    It pads the channels before it pools. The result is the same to the bit as pooling first, and onnxruntime then
    fuses every sum and ReLU into the convolution before it.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C + new_channels, ceil(H / 2), ceil(W / 2)]."""
        return F.avg_pool2d(F.pad(x, (0, 0, 0, 0, 0, self.new_channels)), 2, ceil_mode=True)


class ResidualBlock(nn.Module):
    """One open residual block; who runs the network passes a closed one by through ``shortcut`` alone.

    In training the branch counts in full, in evaluation times the survival probability p_l (paper, section 3,
    equation 5).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least ``in_channels``.
        stride: 1, or 2 where the block halves the resolution.
        p_l: Survival probability, in (0, 1].
    """

    p_l: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int, p_l: float) -> None:
        super().__init__()
        # Differs from paper: no bias in the convolutions, the batch normalisation after each would absorb it.
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else ShortcutA(out_channels - in_channels)
        # A tensor, not a float, so that torch.compile does not specialise every block on its own number.
        self.register_buffer("p_l", torch.tensor(p_l, dtype=torch.float32), persistent=False)

    def residual(self, x: Tensor) -> Tensor:
        """Return f_l(x)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual: Tensor = self.bn2(self.conv2(x))
        return residual

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        residual = self.residual(x)
        if not self.training:
            residual = self.p_l * residual
        return F.relu(residual + self.shortcut(x), inplace=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ResidualBlock":
        """Follow the module to its device, but keep p_l unrounded when the weights become bfloat16."""
        p_l = self.p_l
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.p_l = p_l.to(self.p_l.device)
        return self


def parameters_of(blocks: list[nn.Module]) -> list[Parameter]:
    """Return the parameters of several blocks in one list, in half the time of ``Module.parameters``."""
    modules = (module for block in blocks for module in block.modules())
    return [parameter for module in modules for parameter in module._parameters.values() if parameter is not None]
