"""Networks for the tests of export and runtime: real ones of the zoo with every number away from its default."""

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from sdzoo import SdResNet
from sdzoo.models.datasets import DATASETS

FASHION = {
    "label_names": DATASETS["fashion_mnist"].labels,
    "mean": DATASETS["fashion_mnist"].mean,
    "std": DATASETS["fashion_mnist"].std,
    "input_size": (3, 28, 28),
}


def network(name: str = "sd_resnet20", p_L: float = 0.5, seed: int = 0, **kwargs: object) -> SdResNet:
    """Create a network with random weights and random statistics in every normalisation, in evaluation mode."""
    torch.manual_seed(seed)
    model: SdResNet = timm.create_model(name, drop_path_rate=1 - p_L, **kwargs)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, std=0.3)  # both signs; small, so that 600 blocks do not overflow
            nn.init.normal_(norm.bias, std=0.05)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def images(n: int, H: int, W: int, seed: int = 0) -> NDArray[np.float32]:
    """Return noise around a colour of its own for each image, so that their logits differ."""
    generator = np.random.default_rng(seed)
    colours = generator.normal(scale=2, size=(n, 3, 1, 1))
    return (colours + generator.normal(size=(n, 3, H, W))).astype(np.float32)
