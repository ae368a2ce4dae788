"""A second implementation of the paper's test rule, in NumPy float64, from nothing but a state dict.

H_l = ReLU(p_l * f_l(H_{l-1}) + s(H_{l-1})) (paper, section 3, equation 5), every layer written out: no folding, no
torch, no code of the package.
"""

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EPS = 1e-5  # of batch normalisation, torch's default
Array = NDArray[np.float64]


def logits(state_dict: Mapping[str, object], images: Array) -> Array:
    """Map images [N, C, H, W] to logits [N, classes]."""
    w = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in state_dict.items()}
    x = relu(normalise(convolve(images, w["conv1.weight"], 1), w, "bn1"))
    for block, p_l in zip(block_names(w), w["survival"], strict=True):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        f = relu(normalise(convolve(x, w[f"{block}.conv1.weight"], stride), w, f"{block}.bn1"))
        f = normalise(convolve(f, w[f"{block}.conv2.weight"], 1), w, f"{block}.bn2")
        x = relu(p_l * f + shortcut(x, f.shape[1], stride))
    return x.mean(axis=(2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def block_names(names: Mapping[str, Array]) -> list[str]:
    blocks = {(int(stage), int(index)) for name in names for stage, index in re.findall(r"^layer(\d+)\.(\d+)", name)}
    return [f"layer{stage}.{index}" for stage, index in sorted(blocks)]


def convolve(x: Array, weight: Array, stride: int) -> Array:
    """3 x 3 convolution, one pixel of zeros around the image."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)


def normalise(x: Array, w: Mapping[str, Array], name: str) -> Array:
    mean, var, gamma, beta = (
        w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + EPS) * gamma + beta


def shortcut(x: Array, channels: int, stride: int) -> Array:
    """Identity, or option A: the mean of every 2 x 2 pixels that there are, and channels of zeros behind."""
    if stride == 1:
        return x
    for axis in (2, 3):
        starts = np.arange(0, x.shape[axis], 2)
        counts = np.minimum(2, x.shape[axis] - starts)
        shape = [-1 if axis == other else 1 for other in range(4)]
        x = np.add.reduceat(x, starts, axis=axis) / counts.reshape(shape)
    zeros = np.zeros((len(x), channels - x.shape[1], *x.shape[2:]))
    return np.concatenate([x, zeros], axis=1)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)
