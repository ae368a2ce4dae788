"""The recipes of the paper's experiments: its learning rate, its optimiser and its data, as timm makes them of it."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from sdzoo.models.datasets import DATASETS
from sdzoo.training import launch
from sdzoo.training.data import PROTOCOLS

# recipe: depth, epochs, the parts of them after which the rate is divided by 10, epochs of warm-up, data set, augmented
PAPER = {
    "cifar10_resnet110_paper": (110, 500, (0.5, 0.75), 0, "cifar10", True),
    "cifar10_resnet110_plain": (110, 500, (0.5, 0.75), 0, "cifar10", False),
    "cifar10_resnet110_survival": (110, 500, (0.5, 0.75), 0, "cifar10", True),
    "cifar10_resnet1202": (1202, 500, (0.5, 0.75), 10, "cifar10", True),
    "cifar100_resnet110": (110, 500, (0.5, 0.75), 0, "cifar100", True),
    "cifar100_resnet110_plain": (110, 500, (0.5, 0.75), 0, "cifar100", False),
    "svhn_resnet152": (152, 50, (0.6, 0.7), 0, "svhn", False),
}


def arguments(name: str, script: Path, *given: str) -> Namespace:
    """Return what timm's script makes of a recipe and of arguments given on the command line."""
    return launch.script_parser(script, launch.find_recipe(name)).parse_args(given)


@pytest.mark.parametrize("name", PAPER)
def test_learning_rate_and_decay_are_the_papers(name: str, timm_script: Path) -> None:
    """Counted from 1, epoch e trains at 0.1 while e < 0.5 E, then at 0.01, from 0.75 E on at 0.001 (SVHN: 0.6, 0.7)."""
    _, epochs, cuts, warmup, _, _ = PAPER[name]
    args = arguments(name, timm_script)
    assert args.epochs == epochs
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    assert isinstance(optimizer, torch.optim.SGD)
    decayed = [
        parameter for group in optimizer.param_groups if group["weight_decay"] == 1e-4 for parameter in group["params"]
    ]
    assert len(decayed) == len(list(model.parameters())) == 4
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)
    assert all(group["dampening"] == 0 for group in optimizer.param_groups)

    scheduler, total = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=351)
    assert total == epochs
    for e in range(1, epochs + 1):
        expected = 0.1 * 0.1 ** sum(e >= cut * epochs for cut in cuts)
        if e <= warmup:
            expected = 0.01 + (e - 1) / warmup * (0.1 - 0.01)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected]), f"epoch {e}"
        scheduler.step(e)  # as the script does after the epoch


@pytest.mark.parametrize("name", PAPER)
def test_network_and_data_are_the_papers(name: str, timm_script: Path) -> None:
    depth, _, _, _, source, augmented = PAPER[name]
    args = arguments(name, timm_script)
    assert (args.model, args.drop_path, args.batch_size) == (f"sd_resnet{depth}", 0.5, 128)
    assert (args.no_aug, args.smoothing, args.drop, args.mixup, args.reprob) == (True, 0, 0, 0, 0)
    protocol, info = PROTOCOLS[args.dataset.removeprefix("torch/")], DATASETS[source]
    assert (protocol.source, protocol.augment, protocol.train) == (source, augmented, None)
    assert protocol.validation == (6_000 if source == "svhn" else 5_000)
    assert (tuple(args.mean), tuple(args.std), args.num_classes) == (info.mean, info.std, len(info.labels))


@pytest.mark.parametrize("name", ["cifar10_resnet110_paper", "cifar10_resnet110_survival"])
def test_baseline_and_sweep_are_arguments_away(name: str, timm_script: Path) -> None:
    args = arguments(name, timm_script, "--drop-path", "0")
    assert set(timm.create_model(args.model, drop_path_rate=args.drop_path, **args.model_kwargs).survival) == {1.0}
    args = arguments(name, timm_script, "--drop-path", "0.2", "--model-kwargs", "survival=uniform")
    uniform = timm.create_model(args.model, drop_path_rate=args.drop_path, **args.model_kwargs)
    assert uniform.survival == pytest.approx([0.8] * 54)


def test_the_sweep_is_the_main_experiment_with_other_survival() -> None:
    main, sweep = (
        launch.find_recipe(name).values() for name in ("cifar10_resnet110_paper", "cifar10_resnet110_survival")
    )
    assert main == sweep


@pytest.mark.parametrize("name", PAPER)
def test_numbers_are_said_to_be_the_papers(name: str) -> None:
    header = launch.find_recipe(name).header()
    assert header["Expected"].startswith(("the paper's numbers", "the paper's finding"))
    assert "not ours" in header["Expected"]
    assert "section 4" in header["Paper"]


def test_the_weights_of_cifar10_are_trained_on_one_schedule(timm_script: Path) -> None:
    """The shallower the net, the fewer blocks it spares (p_L) and the cheaper its epochs."""
    shipped = {20: (0.1, 40), 56: (0.2, 15), 110: (0.5, 20)}
    common = []
    for depth, (drop_path, epochs) in shipped.items():
        args = arguments(f"cifar10_resnet{depth}", timm_script)
        assert (args.model, args.drop_path, args.epochs) == (f"sd_resnet{depth}", drop_path, epochs)
        assert PROTOCOLS[args.dataset.removeprefix("torch/")] == PROTOCOLS["sd_cifar10"]
        assert (tuple(args.mean), tuple(args.std)) == (DATASETS["cifar10"].mean, DATASETS["cifar10"].std)
        assert not args.amp
        values = launch.find_recipe(f"cifar10_resnet{depth}").values()
        common.append({key: values[key] for key in values if key not in ("model", "drop_path", "epochs")})
    assert common[0] == common[1] == common[2]


def test_plain_is_augmented_without_its_augmentation() -> None:
    pairs = [name.removeprefix("sd_") for name in PROTOCOLS if name.endswith("_plain")]
    assert pairs == ["cifar10_plain", "cifar100_plain"]
    for name in pairs:
        augmented = PROTOCOLS[f"sd_{name.removesuffix('_plain')}"]
        assert PROTOCOLS[f"sd_{name}"] == replace(augmented, augment=False)
