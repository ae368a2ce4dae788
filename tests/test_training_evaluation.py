"""Evaluation: top-1, its interval, splits and folders."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from commandline import sdzoo
from PIL import Image

from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.models.datasets import DATASETS
from sdzoo.samples import FASHION_MNIST, read_samples
from sdzoo.training.evaluation import Score, evaluate, folder, labels_of, onnx_network, preprocessing, split


@pytest.fixture
def model() -> torch.nn.Module:
    info = DATASETS["fashion_mnist"]
    overlay = {"input_size": (3, 28, 28), "mean": info.mean, "std": info.std, "label_names": info.labels}
    return timm.create_model("sd_resnet20", pretrained_cfg_overlay=overlay).eval()


def test_score() -> None:
    score = Score(correct=915, n=1_000)
    assert (score.top1, score.error) == (91.5, 8.5)


@pytest.mark.parametrize(("correct", "n"), [(915, 1_000), (10, 10), (0, 7), (9_350, 10_000)])
def test_interval_is_where_the_score_test_turns(correct: int, n: int) -> None:
    """Both ends p solve |wrong - p| = z sqrt(p (1 - p) / n), the definition of Wilson's interval."""
    wrong = 1 - correct / n
    for end in (percent / 100 for percent in Score(correct, n).error_interval()):
        assert 0 <= end <= 1
        assert abs(wrong - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5, abs=1e-9)


def test_counts_what_the_network_gets_right() -> None:
    images = [(torch.full((1, 1, 1), float(i % 4)), i % 3) for i in range(60)]

    def network(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(batch.flatten().long(), 4)

    score = evaluate(network, images, batch_size=7)
    assert (score.correct, score.n) == (sum(i % 4 == i % 3 for i in range(60)), 60)


def test_preprocessing_normalises_with_the_weights_statistics(model: torch.nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    expected = (pixels.astype(np.float64) / 255 - 0.2860) / 0.3530
    ours = preprocessing(model)(Image.fromarray(pixels))
    np.testing.assert_allclose(ours.numpy().transpose(1, 2, 0), expected, atol=1e-6)


def test_folder_and_split_are_the_same_images(model: torch.nn.Module, fashion_mnist_root: Path) -> None:
    assert len(read_samples()) == 200
    shipped, test = folder(FASHION_MNIST, model), split("test", fashion_mnist_root, model)
    scores = [evaluate(model, images) for images in (shipped, test)]
    assert scores[0] == scores[1]
    assert scores[0].n == 200


def test_a_folder_that_is_no_label_is_named(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    (tmp_path / "zebra").mkdir()
    for name in ("bag", "zebra"):
        Image.new("RGB", (28, 28)).save(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="zebra: not one of the labels"):
        folder(tmp_path, model)
    (tmp_path / "zebra" / "a.png").unlink()
    with pytest.raises(InputError, match="zebra: not one of the labels"):
        folder(tmp_path, model)
    model.pretrained_cfg["label_names"] = ()
    with pytest.raises(InputError, match="these weights name no labels"):
        folder(tmp_path, model)


def test_images_below_a_class_count_and_hidden_ones_do_not(model: torch.nn.Module, tmp_path: Path) -> None:
    for name in ("bag/a.png", "bag/leather/b.png", "bag/.thumbnails/b.png", "bag/._a.png", ".cache/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28)).save(tmp_path / name)
    images = folder(tmp_path, model)
    assert [file.name for file in images.files] == ["a.png", "b.png"]
    assert list(images.targets) == [labels_of(model).index("Bag")] * 2


def test_the_command_prints_error_number_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "sd_resnet20.fashion_mnist"
    network = timm.create_model(name, pretrained=True).eval()
    write_onnx(network, tmp_path / "model.onnx")
    score = evaluate(network, folder(FASHION_MNIST, network))
    low, high = score.error_interval()
    figures = f"error {score.error:.2f} % (95 % interval {low:.2f} to {high:.2f}), n = 200"
    for more in ((), ("--onnx", tmp_path / "model.onnx")):
        sdzoo("evaluate", name, "--images", FASHION_MNIST, *more)
        assert figures in capsys.readouterr().out
    checkpoint = tmp_path / "checkpoint-1.pth.tar"
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    recording = ("evaluate", name, "--images", FASHION_MNIST, "--record")
    sdzoo(*recording, expect=1)
    assert "give one with --checkpoint" in capsys.readouterr().err
    sdzoo(*recording, "--checkpoint", checkpoint, "--onnx", tmp_path / "model.onnx", expect=1)
    assert "leave --onnx out" in capsys.readouterr().err
    assert not (tmp_path / "evaluations.csv").exists()


def test_weights_of_an_unknown_data_set(model: torch.nn.Module, tmp_path: Path) -> None:
    model.pretrained_cfg["label_names"] = ("a", "b")
    with pytest.raises(InputError, match="name no data set that sdzoo knows"):
        split("test", tmp_path, model)


@pytest.mark.parametrize("batch", [None, 7])
def test_an_onnx_file_answers_as_its_network(batch: int | None, model: torch.nn.Module, tmp_path: Path) -> None:
    write_onnx(model, tmp_path / "model.onnx", batch=batch)
    images = torch.randn(10, 3, 28, 28)
    with torch.inference_mode():
        expected = model(images)
    logits = onnx_network(tmp_path / "model.onnx", labels_of(model))(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_an_onnx_file_that_cannot_be_evaluated(model: torch.nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(model, file, input="uint8")
    with pytest.raises(InputError, match=r"model\.onnx: takes raw pixels"):
        onnx_network(file, labels_of(model))
    write_onnx(model, file)
    with pytest.raises(InputError, match=r"takes images of \(3, 28, 28\), these are \(3, 32, 32\)"):
        onnx_network(file, labels_of(model))(torch.zeros(2, 3, 32, 32))
    with pytest.raises(InputError, match=r"has the labels T-shirt/top, .*, not cat, dog"):
        onnx_network(file, ("cat", "dog"))
    foreign = onnx.load(file)
    foreign.producer_name = "pytorch"
    onnx.save(foreign, file)
    with pytest.raises(InputError, match="not an ONNX file written by sdzoo"):
        onnx_network(file, labels_of(model))
