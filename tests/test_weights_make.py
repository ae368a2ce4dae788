"""From a training folder to weights that ship: the results beside them are those of the test images."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import typer
from PIL import Image
from published import ARGUMENTS, write_run

from sdzoo.checkpoints import load_model
from sdzoo.errors import InputError
from sdzoo.models.digest import digest
from sdzoo.samples import read_samples
from sdzoo.training.evaluation import evaluate, folder, split
from sdzoo.training.launch import find_recipe
from sdzoo.weights.make import make

NAME = "sd_resnet20.fashion_mnist"
RECIPE = "fashion_mnist_resnet20"
LINE = "Train: {epoch} [   9/10 (100%)]  Loss: 0.3 (0.4)  Time: 0.5s, 256.0/s  (3.600s,  31.4/s)  LR: 1e-01\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training folder with the shipped weights as its best epoch."""
    arguments = (
        ARGUMENTS | find_recipe(RECIPE).values() | {"seed": 7, "epochs": 2, "amp": True, "amp_dtype": "bfloat16"}
    )
    written = write_run(tmp_path / "run", changed=arguments)
    weights = timm.create_model(NAME, pretrained=True).state_dict()
    best = {"epoch": 1, "arch": "sd_resnet20", "state_dict": weights, "args": Namespace(**arguments)}
    torch.save(best, written / "checkpoint-1.pth.tar")
    (written / "train.log").write_text(LINE.format(epoch=0) + LINE.format(epoch=1))
    return written


def results_in(output: Path) -> dict:
    (file,) = output.glob("*.json")
    return json.loads(file.read_text())


def test_the_test_split_counts(run: Path, fashion_mnist_root: Path, tmp_path: Path) -> None:
    make(run, fashion_mnist_root, recipe=RECIPE, machine="an abacus", output=tmp_path)
    results, model = results_in(tmp_path), load_model(NAME, checkpoint=tmp_path / f"{NAME}.safetensors")
    score = evaluate(model, split("test", fashion_mnist_root, model))
    assert (results["test"]["top1"], results["test"]["n"]) == (score.top1, 200)
    validated = evaluate(model, split("validation", fashion_mnist_root, model))
    assert (results["best_epoch"], results["validation_top1"]) == (1, round(validated.top1, 2))
    assert results["arguments"] == {"epochs": 2, "seed": 7}
    assert results["training_hours"] == 0.02  # two epochs of ten steps of 3.6 s
    assert (results["precision"], results["hardware"]) == ("bfloat16", "an abacus")
    assert results["digest"] == digest(model.state_dict()) == digest(load_model(NAME).state_dict())


def test_a_lossless_part_and_all_of_it_compressed_are_joined(
    run: Path, fashion_mnist_root: Path, tmp_path: Path
) -> None:
    for index, sample in enumerate(read_samples()):
        with Image.open(sample.path) as image:
            for tree, suffix, wanted in (("part", "png", index % 4 == 0), ("whole", "jpg", True)):
                target = tmp_path / tree / sample.path.parent.name
                target.mkdir(parents=True, exist_ok=True)
                if wanted:
                    image.convert("RGB").save(target / f"{index:04}.{suffix}", quality=2)
    parts = {"lossless": tmp_path / "part", "compressed": tmp_path / "whole"}
    make(run, fashion_mnist_root, recipe=RECIPE, output=tmp_path, **parts)
    results, model = results_in(tmp_path), load_model(NAME)
    wrong = {tree: wrong_of(model, tmp_path / tree) for tree in ("part", "whole")}
    same = [wrong["whole"][name] for name in wrong["part"]]
    means = [sum(values) / len(values) for values in (wrong["part"].values(), wrong["whole"].values(), same)]
    assert len(set(means)) == 3, "these images tell the three numbers apart"
    on_part, on_whole, on_same = (100 * mean for mean in means)
    assert results["test"]["error"] == pytest.approx(on_part, abs=0.005)
    assert (results["test"]["n"], results["test_compressed"]["n"]) == (50, 200)
    assert (results["test"]["images"], results["test_compressed"]["images"]) == ("part", "whole")
    assert results["test_compressed"]["error"] == pytest.approx(on_whole, abs=0.005)
    assert results["test_estimate"]["error"] == pytest.approx(on_whole - on_same + on_part, abs=0.005)
    assert results["test_estimate"]["error_of_the_part_compressed"] == pytest.approx(on_same, abs=0.005)
    missed = next((tmp_path / "whole").rglob("0004.jpg"))
    missed.unlink()
    with pytest.raises(InputError, match=rf"whole: has no {missed.parent.name}/0004, which is in .*part"):
        make(run, fashion_mnist_root, recipe=RECIPE, output=tmp_path, **parts)


def test_a_log_that_leaves_an_epoch_out_is_refused(run: Path, fashion_mnist_root: Path, tmp_path: Path) -> None:
    (run / "train.log").write_text(LINE.format(epoch=0))
    with pytest.raises(InputError, match=r"train\.log: tells no time of epoch 1"):
        make(run, fashion_mnist_root, recipe=RECIPE, output=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_half_of_the_test_images_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="together or not at all"):
        make(run, tmp_path, recipe=RECIPE, output=tmp_path, lossless=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def wrong_of(model: torch.nn.Module, tree: Path) -> dict[str, bool]:
    """Return, for each image of a folder, whether its label is missed."""
    images = folder(tree, model)
    with torch.inference_mode():
        logits = model(torch.stack([image for image, _ in images]))
    targets = torch.tensor(images.targets)
    return {file.stem: bool(miss) for file, miss in zip(images.files, logits.argmax(1) != targets, strict=True)}
