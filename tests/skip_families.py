"""One small network of each of ten families whose blocks are written in different ways."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from torch import Tensor, nn

from sdzoo.models.skip_check import stir


def _metaformer(**kwargs: object) -> MetaFormer:
    """timm's CAFormers take no other depths than their own."""
    mixers = [SepConv, SepConv, Attention, Attention]
    norms = [LayerNorm2dNoBias, LayerNorm2dNoBias, LayerNormNoBias, LayerNormNoBias]
    return MetaFormer(token_mixers=mixers, norm_layers=norms, **kwargs)


# family: (name or class, size of the input, arguments that make it small)
FAMILIES: dict[str, tuple[str | Callable[..., nn.Module], int, dict[str, object]]] = {
    "ResNet": ("test_resnet", 64, {}),
    "ConvNeXt": ("test_convnext", 64, {}),
    "ViT": ("test_vit", 64, {"img_size": 64}),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        56,
        {"img_size": 56, "depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4)},
    ),
    "EfficientNet": ("mobilenetv2_035", 64, {}),
    "MaxViT": ("test_maxvit", 64, {"img_size": 64}),
    "Hiera": ("hiera_tiny_224", 64, {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 2, 1)}),
    "EVA": ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 3}),
    "MetaFormer": (_metaformer, 64, {"depths": (1, 1, 2, 1), "dims": (32, 32, 64, 64)}),
    "CoAtNet": ("test_coatnet", 64, {"img_size": 64}),
}


def network(family: str, drop_path_rate: float = 0.4, **kwargs: object) -> nn.Module:
    """Create the family's network in training mode, without dropout, the same weights every time."""
    name, _, small = FAMILIES[family]
    create = partial(timm.create_model, name) if isinstance(name, str) else name
    torch.manual_seed(0)
    model: nn.Module = create(drop_path_rate=drop_path_rate, **small, **kwargs)
    stir(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def images(family: str, batch: int = 2, seed: int = 1) -> Tensor:
    _, size, _ = FAMILIES[family]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
