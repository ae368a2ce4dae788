"""``skip_<timm name>``: timm's networks by name, and timm's own script on a few images."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from sdzoo.adapted import load_adapted
from sdzoo.errors import InputError
from sdzoo.models import skip_names
from sdzoo.training.launch import RECIPES

DEPTHS = {50: 16, 101: 33, 152: 50}


def test_every_network_of_timm_has_a_name() -> None:
    names = skip_names.timm_names()
    assert len(names) > 1300
    assert "resnet50" in names and not any(name.startswith(("sd_", "skip_")) for name in names)
    assert all(timm.is_model(f"skip_{name}") for name in names)


def test_import_sdzoo_alone_registers_none() -> None:
    program = "import sdzoo, timm; assert not timm.list_models('skip_*'); assert timm.list_models('sd_*')"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_network_is_timms_with_the_options_given() -> None:
    torch.manual_seed(0)
    ours = timm.create_model(
        "skip_test_vit", drop_path_rate=0.4, num_classes=5, mode="sample", schedule="uniform", gate_seed=9
    )
    torch.manual_seed(0)
    timms = timm.create_model("test_vit", drop_path_rate=0.4, num_classes=5)
    assert isinstance(ours, type(timms))
    assert ours._draws.mode == "sample" and ours._draws.gates.seed == 9
    assert ours._draws.gates.survival == pytest.approx([0.6] * 12)
    for name, weight in timms.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)
    assert ours.pretrained_cfg["architecture"] == "test_vit"


def test_tags_and_pretrained_weights_are_timms() -> None:
    tagged = timm.create_model("skip_resnet18.a1_in1k", drop_path_rate=0.1)
    assert tagged.pretrained_cfg["tag"] == "a1_in1k"
    assert tagged.pretrained_cfg["hf_hub_id"] == "timm/resnet18.a1_in1k"


def test_pretrained_file_of_timm_loads(tmp_path: Path) -> None:
    timms = timm.create_model("test_convnext")
    torch.save(timms.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    ours = timm.create_model("skip_test_convnext", pretrained=True, drop_path_rate=0.3, pretrained_cfg_overlay=overlay)
    assert torch.equal(ours.head.fc.weight, timms.head.fc.weight)


def test_features_only() -> None:
    features = timm.create_model("skip_resnet18", features_only=True, drop_path_rate=0.4).train()
    assert len(features(torch.randn(2, 3, 64, 64))) == 5
    assert features._draws.gates.step == 1


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"timm has no 'resnet51'; near names: skip_resnet5"):
        skip_names.check_name("skip_resnet51.a1_in1k")
    with pytest.raises(InputError, match=r"near names: none"):
        skip_names.check_name("skip_qqqqqqqq")
    skip_names.check_name("skip_resnet50.a1_in1k")
    skip_names.check_name("sd_resnet20")


def test_a_family_without_drop_path_says_so() -> None:
    with pytest.raises(InputError, match="timm's vgg11 has no DropPath"):
        timm.create_model("skip_vgg11", drop_path_rate=0.1)
    with pytest.raises(TypeError, match="unknown_argument"):
        timm.create_model("skip_resnet18", drop_path_rate=0.1, unknown_argument=1)


def test_rate_zero_is_the_constant_depth_baseline() -> None:
    with pytest.warns(UserWarning, match="rate 0"):
        model = timm.create_model("skip_test_resnet", rule="paper", schedule="linear")
    assert type(model) is timm.models.ResNet
    assert type(model).__mro__[1] is torch.nn.Module


@pytest.mark.parametrize("depth", DEPTHS)
def test_imagenet_recipes_hold_the_papers_schedule(depth: int) -> None:
    """p_l = 1 - l/L * (1 - p_L) over all L blocks, the first included; constant depth by ``--drop-path 0``."""
    recipe = yaml.safe_load((RECIPES / f"imagenet_resnet{depth}.yaml").read_text())
    with torch.device("meta"):
        model = timm.create_model(recipe["model"], drop_path_rate=recipe["drop_path"], **recipe["model_kwargs"])
    L = DEPTHS[depth]
    survival = model._draws.gates.survival
    assert survival == pytest.approx([1 - l / L * 0.5 for l in range(1, L + 1)], abs=1e-12)  # noqa: E741
    assert sum(survival) == pytest.approx((3 * L - 1) / 4)
    assert (recipe["epochs"], recipe["batch_size"], recipe["lr"]) == (90, 256, 0.1)


def test_loading_needs_a_rate_and_the_right_weights(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="rate is not known; say it with --drop-path"):
        load_adapted("skip_test_convnext", checkpoint=tmp_path / "weights.pth")
    assert load_adapted("skip_test_convnext", checkpoint=tmp_path / "weights.pth", drop_path=0.2).num_classes == 1000
    with pytest.raises(InputError, match=r"weights\.pth: .*Missing key"):
        load_adapted("skip_test_vit", checkpoint=tmp_path / "weights.pth", drop_path=0.2)
    with pytest.raises(InputError, match="near names: skip_test_vit"):
        load_adapted("skip_test_vitt", pretrained=False, drop_path=0.2)


# --- timm's own script


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Eight pictures of noise in each of two classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = generator.integers(0, 256, (72, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"


def train(script: Path, data: Path, output: Path, *arguments: str) -> Path:
    words = [
        *(sys.executable, str(script), "--device-modules", "sdzoo.models.skip_names", "--device", "cpu"),
        *("--no-prefetcher", "-j", "0", "--data-dir", str(data), "--output", str(output), "--experiment", "run"),
        *("--num-classes", "2", "-b", "4", "--input-size", "3", "64", "64", "--epochs", "1", "--cooldown-epochs", "0"),
        *arguments,
    ]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return output / "run"


def test_stock_script_trains_resumes_and_keeps_the_gate_step(
    timm_script: Path, picture_folder: Path, tmp_path: Path
) -> None:
    options = [
        *("--model", "skip_test_resnet", "--drop-path", "0.5"),
        *("--model-kwargs", "rule=paper", "schedule=linear", "gate_seed=3"),
    ]
    first = train(timm_script, picture_folder, tmp_path / "one", *options)
    checkpoint = torch.load(first / "last.pth.tar", weights_only=False)
    assert int(checkpoint["state_dict"]["gate_step"]) == 4
    loaded = load_adapted("skip_test_resnet", checkpoint=first / "last.pth.tar")
    assert not loaded.training and loaded.num_classes == 2
    assert loaded._draws.gates.survival == pytest.approx([1 - l / 8 for l in range(1, 5)])  # noqa: E741
    assert loaded.layer1[0].drop_path.paper
    for name, weight in checkpoint["state_dict"].items():
        assert name == "gate_step" or torch.equal(loaded.state_dict()[name], weight)
    resume = ["--resume", str(first / "last.pth.tar"), "--epochs", "2"]
    second = train(timm_script, picture_folder, tmp_path / "two", *options, *resume)
    checkpoint = torch.load(second / "last.pth.tar", weights_only=False)
    assert int(checkpoint["state_dict"]["gate_step"]) == 8
    with (second / "summary.csv").open() as file:
        assert all(np.isfinite(float(row["train_loss"])) for row in csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("drop_path", ["0.5", "0"])
def test_imagenet_recipe_trains_a_few_steps(
    drop_path: str, timm_script: Path, picture_folder: Path, tmp_path: Path
) -> None:
    config = ["--config", str(RECIPES / "imagenet_resnet50.yaml"), "--drop-path", drop_path]
    assert (train(timm_script, picture_folder, tmp_path, *config) / "last.pth.tar").is_file()
