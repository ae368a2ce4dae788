"""Loading from a name and a checkpoint: the right network, or one line that says why not."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sdzoo import SdResNet, survival_probabilities
from sdzoo.checkpoints import load_model, read_checkpoint
from sdzoo.errors import InputError


class Code:
    """A pickle that would create a file."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def network(**arguments: object) -> SdResNet:
    torch.manual_seed(0)
    return timm.create_model("sd_resnet20", **arguments)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as timm's script writes it: 7 classes, one channel, p_L = 0.8."""
    model = network(num_classes=7, in_chans=1, drop_path_rate=0.2)
    arguments = argparse.Namespace(dataset="", input_size=[1, 28, 28], mean=[0.3], std=[0.4])
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": model.state_dict(), "args": arguments, "epoch": 3}, path)
    return path


def test_checkpoint_decides_classes_channels_statistics_and_schedule(checkpoint: Path) -> None:
    model = load_model("sd_resnet20", checkpoint=checkpoint)
    assert not model.training
    assert (model.num_classes, model.conv1.in_channels) == (7, 1)
    assert model.survival == survival_probabilities(9, 0.8)
    assert model.pretrained_cfg["mean"] == (0.3,)
    assert model.pretrained_cfg["input_size"] == (1, 28, 28)
    original = network(num_classes=7, in_chans=1, drop_path_rate=0.2).eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), original(x))


def test_labels_come_from_the_data_set_trained_on(tmp_path: Path) -> None:
    arguments = argparse.Namespace(dataset="torch/sd_fashion_mnist")
    torch.save({"state_dict": network().state_dict(), "args": arguments}, tmp_path / "a.pth.tar")
    assert load_model("sd_resnet20", checkpoint=tmp_path / "a.pth.tar").pretrained_cfg["label_names"][8] == "Bag"


def test_that_the_average_of_the_weights_is_taken_is_said(tmp_path: Path) -> None:
    arguments, weights = argparse.Namespace(model_ema=True), network().state_dict()
    torch.save({"state_dict": {}, "state_dict_ema": weights, "args": arguments}, tmp_path / "a.pth.tar")
    with pytest.warns(UserWarning, match="taking the moving average of the weights"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth.tar")


def test_average_of_the_weights_is_taken_unless_told_otherwise(tmp_path: Path) -> None:
    plain, average = network().state_dict(), timm.create_model("sd_resnet20").state_dict()
    torch.save({"state_dict": plain, "state_dict_ema": average}, tmp_path / "a.pth")
    for use_ema, expected in ((True, average), (False, plain)):
        read = read_checkpoint(tmp_path / "a.pth", use_ema)
        assert torch.equal(read.state_dict["conv1.weight"], expected["conv1.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(network(drop_path_rate=0.3).state_dict(), tmp_path / "a.safetensors")
    assert load_model("sd_resnet20", checkpoint=tmp_path / "a.safetensors").survival[-1] == pytest.approx(0.7)


def test_weights_without_schedule_need_one(tmp_path: Path) -> None:
    weights = network().state_dict()
    del weights["survival"], weights["gate_step"]
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"carries no survival probabilities; say them with --drop-path"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")
    assert load_model("sd_resnet20", checkpoint=tmp_path / "a.pth", drop_path=0.3).survival[-1] == pytest.approx(0.7)


def test_an_agreeing_flag_is_fine_and_a_contradicting_one_is_not(checkpoint: Path) -> None:
    assert load_model("sd_resnet20", checkpoint=checkpoint, drop_path=0.2).survival[-1] == pytest.approx(0.8)
    with pytest.raises(InputError, match=r"trained with p_L = 0\.8, --drop-path 0\.5 asks for p_L = 0\.5"):
        load_model("sd_resnet20", checkpoint=checkpoint, drop_path=0.5)
    with pytest.raises(InputError, match=r"--drop-path is 1\.5, must be in \[0, 1\)"):
        load_model("sd_resnet20", checkpoint=checkpoint, drop_path=1.5)


def test_random_network(tmp_path: Path) -> None:
    assert load_model("sd_resnet44", pretrained=False, drop_path=0.1).survival[-1] == pytest.approx(0.9)
    with pytest.raises(InputError, match=r"--drop-path is -1\.0, must be in \[0, 1\)"):
        load_model("sd_resnet44", pretrained=False, drop_path=-1.0)


@pytest.mark.parametrize("name", ["sd_resnet21", "sd_resnet20.imagenet", "resnet20", "../sd_resnet20"])
def test_unknown_name_lists_near_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown model .*; near names: .*sd_resnet20"):
        load_model(name)


def test_a_network_without_weights_says_which_have_some() -> None:
    with pytest.raises(InputError, match=r"sd_resnet1202 has no weights; give a checkpoint"):
        load_model("sd_resnet1202")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pth: no such checkpoint"):
        load_model("sd_resnet20", checkpoint=tmp_path / "absent.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(1000)])
def test_not_a_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged, or not a checkpoint"):
        load_model("sd_resnet20", checkpoint=tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(checkpoint: Path, tmp_path: Path, share: float) -> None:
    save_file(network().state_dict(), tmp_path / "b.safetensors")
    for path in (checkpoint, tmp_path / "b.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="damaged, or not a checkpoint"):
            load_model("sd_resnet20", checkpoint=path)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, "evil.pth")
    with pytest.raises(InputError, match=r"refused, it would run code \(posix\.system\)"):
        load_model("sd_resnet20", checkpoint=Path("evil.pth"))
    assert not Path("executed").exists()


def test_another_architecture_is_named_by_its_keys(tmp_path: Path) -> None:
    torch.save(timm.create_model("sd_resnet32").state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not a checkpoint of sd_resnet20: layer1\.3\.conv1\.weight.* unknown"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not a checkpoint of sd_resnet44: layer1\.5\.conv1\.weight.* missing"):
        load_model("sd_resnet44", checkpoint=tmp_path / "a.pth")
    weights = network().state_dict()
    weights["layer2.0.conv1.weight"] = torch.zeros(32, 16, 1, 1)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight of another shape"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, "text"])
def test_a_file_without_tensors(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")


def test_a_foreign_network_is_named_by_its_keys_not_asked_for_a_schedule(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not a checkpoint of sd_resnet20: .* unknown"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")


@pytest.mark.parametrize("dataset", ["", "torch/sd_cifar100", "folder"])
def test_labels_are_not_those_of_another_data_set(tmp_path: Path, dataset: str) -> None:
    arguments = argparse.Namespace(dataset=dataset)
    torch.save({"state_dict": network().state_dict(), "args": arguments}, tmp_path / "a.pth")
    save_file(network().state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert load_model("sd_resnet20", checkpoint=tmp_path / name).pretrained_cfg["label_names"] == ()
    named = load_model("sd_resnet20.fashion_mnist", checkpoint=tmp_path / "a.safetensors")
    assert named.pretrained_cfg["label_names"][9] == "Ankle boot"


def test_a_published_folder_says_what_its_weights_are(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    labels = [f"class {number}" for number in range(10)]
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 20, 20]}
    (tmp_path / "config.json").write_text(json.dumps({"label_names": labels, "pretrained_cfg": cfg}))
    model = load_model("sd_resnet20", checkpoint=tmp_path / "model.safetensors")
    assert model.pretrained_cfg["label_names"] == tuple(labels)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert model.pretrained_cfg["input_size"] == (3, 20, 20)


@pytest.mark.parametrize(
    "odd",
    [
        {"survival": torch.full((9,), 2.0)},
        {"survival": torch.full((9,), torch.nan)},
        {"gate_step": torch.zeros(3)},
        {"conv1.weight": torch.zeros(16)},
        {"fc.weight": torch.tensor(1.0)},
    ],
    ids=lambda odd: " ".join(odd),
)
def test_odd_tensors_are_one_line(tmp_path: Path, odd: dict[str, torch.Tensor]) -> None:
    torch.save(network().state_dict() | odd, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: not a checkpoint of sd_resnet20"):
        load_model("sd_resnet20", checkpoint=tmp_path / "a.pth")


def test_an_unknown_tag_lists_those_of_the_network() -> None:
    with pytest.raises(
        InputError,
        match=r"unknown model 'sd_resnet20\.nope'; near names: sd_resnet20\.cifar10, sd_resnet20\.fashion_mnist",
    ):
        load_model("sd_resnet20.nope")


def test_a_plain_pickle_is_refused_without_a_word_of_torchs(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Code()))
    with pytest.raises(InputError, match=r"evil\.pth: "):
        load_model("sd_resnet20", checkpoint=tmp_path / "evil.pth")
    assert not recwarn.list
