"""The names of the zoo: every depth and every set of weights, registered with timm."""

import math
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from sdzoo.models.datasets import DATASETS
from sdzoo.models.digest import check_published, forget_digest
from sdzoo.models.sd_resnet import MIN_SIZE, SdResNet
from sdzoo.weights import weight_sources

DEPTHS = (20, 32, 44, 56, 110, 152, 1202)


def _cfg(dataset: str, **kwargs: Any) -> dict[str, Any]:
    info = DATASETS[dataset]
    pooled = math.ceil(info.size / 4)
    return {
        "num_classes": len(info.labels),
        "input_size": (3, info.size, info.size),
        "min_input_size": (3, MIN_SIZE, MIN_SIZE),
        "pool_size": (pooled, pooled),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": info.mean,
        "std": info.std,
        "label_names": info.labels,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_name": "Deep Networks with Stochastic Depth",
        "paper_ids": "arXiv:1603.09382",
        **kwargs,
    }


def _cfgs(name: str) -> dict[str, dict[str, Any]]:
    """Return timm's configurations of one network: a tag for each weight file that exists, else one without."""
    shipped = {
        f"{name}.{dataset}": _cfg(dataset, **sources)
        for dataset in DATASETS
        if (sources := weight_sources(name, dataset))
    }
    return shipped or {name: _cfg("cifar10")}


default_cfgs = generate_default_cfgs({tag: cfg for depth in DEPTHS for tag, cfg in _cfgs(f"sd_resnet{depth}").items()})


def _register(depth: int) -> None:
    name = f"sd_resnet{depth}"

    def create(pretrained: bool = False, **kwargs: Any) -> SdResNet:
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
        model: SdResNet = build_model_with_cfg(
            SdResNet,
            name,
            pretrained,
            feature_cfg=features,
            pretrained_filter_fn=check_published,
            depth=depth,
            **kwargs,
        )
        forget_digest(model)
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"ResNet-{depth} with stochastic depth (paper, section 4)."
    register_model(create)


for _depth in DEPTHS:
    _register(_depth)
