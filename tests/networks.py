"""Networks and batches for the tests; for export and runtime, real ones with every number away from its default."""

from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from sdzoo import SdResNet
from sdzoo.models.blocks import ResidualBlock
from sdzoo.models.datasets import DATASETS
from sdzoo.models.registry import DEPTHS

NAMES = [f"sd_resnet{depth}" for depth in DEPTHS]


def blocks_of(model: SdResNet) -> list[ResidualBlock]:
    """Return the residual blocks in order."""
    return [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]


def noise(n: int = 4, size: int = 16, chans: int = 3) -> torch.Tensor:
    """Return one batch, always the same."""
    return torch.randn(n, chans, size, size, generator=torch.Generator().manual_seed(0))


def configuration(dataset: str) -> dict[str, Any]:
    """Return timm's configuration for a data set, whatever weights the package ships."""
    info = DATASETS[dataset]
    size = (3, info.size, info.size)
    return {"label_names": info.labels, "mean": info.mean, "std": info.std, "input_size": size, "tag": ""}


CIFAR = configuration("cifar10")
FASHION = configuration("fashion_mnist")


def network(
    name: str = "sd_resnet20", p_L: float = 0.5, seed: int = 0, cfg: dict[str, Any] = CIFAR, **kwargs: Any
) -> SdResNet:
    """Create a network with random weights and random statistics in every normalisation, in evaluation mode."""
    torch.manual_seed(seed)
    model: SdResNet = timm.create_model(name, drop_path_rate=1 - p_L, pretrained_cfg_overlay=cfg, **kwargs)
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


def lively_network(**kwargs: Any) -> SdResNet:
    """Return a network whose logits depend on the picture, not on its brightness alone."""
    return network(cfg={**FASHION, "tag": "fashion_mnist"}, p_L=0.9, **kwargs)
