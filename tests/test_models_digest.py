import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from published import trained
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from sdzoo.models.digest import DIGEST_KEY, NOTE, digest, noted_digest, take_digest, with_digest

TENSORS = {
    "survival": torch.tensor([0.9, 0.5], dtype=torch.float64),
    "conv1.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "bn1.running_mean": torch.tensor([0.5, -0.5]),
    "bn1.num_batches_tracked": torch.tensor(7),
    "gate_step": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}
CHANGES = {
    "another name": lambda t: {("conv2.weight" if name == "conv1.weight" else name): t[name] for name in t},
    "one tensor less": lambda t: {name: t[name] for name in t if name != "empty"},
    "another dtype": lambda t: t | {"bn1.running_mean": t["bn1.running_mean"].double()},
    "another shape": lambda t: t | {"conv1.weight": t["conv1.weight"].reshape(2, 3, 4, 1)},
    "one number": lambda t: t | {"conv1.weight": t["conv1.weight"] + torch.eye(2)},
    "the last bit": lambda t: t | {"survival": t["survival"].nextafter(torch.tensor(1.0, dtype=torch.float64))},
    "a running statistic": lambda t: t | {"bn1.running_mean": -t["bn1.running_mean"]},
    "minus zero": lambda t: t | {"conv1.weight": torch.where(t["conv1.weight"] == 0, -0.0, t["conv1.weight"])},
}
SAME = {
    "another order": lambda t: dict(reversed(t.items())),
    "channels last": lambda t: t | {"conv1.weight": t["conv1.weight"].contiguous(memory_format=torch.channels_last)},
    "later gate step": lambda t: t | {"gate_step": torch.tensor(9)},
    "more batches": lambda t: t | {"bn1.num_batches_tracked": torch.tensor(9)},
    "as published": with_digest,
    "parameters": lambda t: t | {"conv1.weight": nn.Parameter(t["conv1.weight"])},
}


def test_digest_is_the_sha256_of_sorted_names_dtypes_shapes_and_bytes():
    counted = ["bn1.running_mean", "conv1.weight", "empty", "survival"]
    expected = b"".join(
        json.dumps([name, str(TENSORS[name].dtype), list(TENSORS[name].shape)]).encode()
        + b"\n"
        + TENSORS[name].numpy().tobytes()
        for name in counted
    )
    assert digest(TENSORS) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("change", CHANGES)
def test_digest_differs(change: str):
    assert digest(CHANGES[change](TENSORS)) != digest(TENSORS)


@pytest.mark.parametrize("change", SAME)
def test_digest_is_the_same(change: str):
    assert digest(SAME[change](TENSORS)) == digest(TENSORS)


def test_bfloat16_and_meta_shapes_have_a_digest():
    assert digest({"w": torch.ones(2, dtype=torch.bfloat16)}) != digest({"w": torch.ones(2, dtype=torch.float16)})


def test_take_digest_removes_it_and_leaves_tensors_without_one_alone():
    tensors = with_digest(TENSORS)
    take_digest(tensors, "")
    assert set(tensors) == set(TENSORS)
    take_digest(tensors, "")
    with pytest.raises(RuntimeError, match=rf"{digest(TENSORS)}, published was {'0' * 64}: fetch it"):
        take_digest(tensors, "fetch it", noted="0" * 64)


# loads through timm: each must accept the weights as published, and no others


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("digest") / "published", trained())


def publish(folder: Path, model: nn.Module) -> Path:
    """Write weights and configuration as ``local-dir:`` wants them, by timm's own functions."""
    weights = with_digest(model.state_dict())
    notes = ["trained for a test", NOTE + digest(weights)]
    save_for_hf(
        model,
        str(folder),
        model_config={"pretrained_cfg": {"notes": notes}},
        model_args={"drop_path_rate": 0.1},
        safe_serialization=True,
    )
    save_file(weights, folder / "model.safetensors")
    return folder


LOADS: dict[str, Callable[[Path], nn.Module]] = {
    "local-dir": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    "another head": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3),
    "no head": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0),
    "grey images": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1),
    "features": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True),
    "checkpoint_path": lambda folder: timm.create_model("sd_resnet20", checkpoint_path=folder / "model.safetensors"),
    "file": lambda folder: timm.create_model(
        "sd_resnet20", pretrained=True, pretrained_cfg_overlay={"file": str(folder / "model.safetensors")}
    ),
    "file, another head": lambda folder: timm.create_model(
        "sd_resnet20",
        pretrained=True,
        num_classes=3,
        pretrained_cfg_overlay={"file": str(folder / "model.safetensors")},
    ),
}


def damage(folder: Path, target: Path, name: str = "model.safetensors", tensor: str = "layer2.1.conv1.weight") -> Path:
    """Copy a folder with one bit of one tensor flipped: the file keeps its size."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / name)
    tensors[tensor].view(torch.uint8).flatten()[0] ^= 1
    save_file(tensors, target / name)
    assert (target / name).stat().st_size == (folder / name).stat().st_size
    return target


@pytest.mark.parametrize("load", LOADS)
def test_published_weights_load(folder: Path, load: str):
    model = LOADS[load](folder)
    (weight,) = (tensor for name, tensor in model.named_parameters() if name.endswith("layer2.1.conv1.weight"))
    assert torch.equal(weight, trained().layer2[1].conv1.weight)
    assert not [name for name in model.state_dict() if name.endswith(DIGEST_KEY)]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("tensor", ["layer2.1.conv1.weight", "bn1.running_var", "survival", "fc.bias", DIGEST_KEY])
def test_one_flipped_bit_is_refused(folder: Path, tmp_path: Path, load: str, tensor: str):
    damaged = damage(folder, tmp_path / "damaged", tensor=tensor)
    tensors = load_file(damaged / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"replace .+ by an undamaged copy") as caught:
        LOADS[load](damaged)
    published = bytes(tensors.pop(DIGEST_KEY).tolist()).hex()
    assert digest(tensors) in str(caught.value) and published in str(caught.value)


@pytest.mark.parametrize("load", ["local-dir", "another head", "grey images"])
def test_weights_of_another_publication_are_refused(folder: Path, tmp_path: Path, load: str):
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    save_file(with_digest(trained(seed=1).state_dict()), mixed / "model.safetensors")
    with pytest.raises(RuntimeError, match=digest(trained().state_dict())):
        LOADS[load](mixed)


@pytest.mark.parametrize("load", LOADS)
def test_a_truncated_file_is_refused(folder: Path, tmp_path: Path, load: str):
    shutil.copytree(folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(SafetensorError):
        LOADS[load](tmp_path / "cut")


def test_a_fine_tuned_network_saves_and_loads_by_timm_alone(folder: Path, tmp_path: Path):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["notes"] == ("trained for a test",)
    with torch.no_grad():
        model.fc.bias.add_(1)
    save_for_hf(model, str(tmp_path / "tuned"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True)
    assert torch.equal(again.fc.bias, model.fc.bias)
    assert noted_digest(again.pretrained_cfg) is None


def test_an_unpretrained_network_of_a_repository_forgets_the_digest(folder: Path):
    assert noted_digest(timm.create_model(f"local-dir:{folder}").pretrained_cfg) is None


def test_a_network_inside_another_module_is_checked(folder: Path):
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    inside = {f"network.{name}": tensor for name, tensor in tensors.items()}
    module = nn.ModuleDict({"network": timm.create_model("sd_resnet20")})
    module.load_state_dict(inside)
    inside["network.bn1.bias"] = inside["network.bn1.bias"] + 1
    with pytest.raises(RuntimeError, match="undamaged copy"):
        module.load_state_dict(inside)


def test_a_close_schedule_given_by_hand_becomes_exactly_that_of_the_weights(folder: Path):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, drop_path_rate=0.1 + 1e-13)
    assert digest(model.state_dict()) == digest(load_file(folder / "model.safetensors"))
