"""The folder that is published: its files and sums, its card, what it says of the training."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from published import FILES, REPOSITORY, contents, trained, write_published, write_run
from safetensors.torch import load as load_tensors

from sdzoo.errors import InputError
from sdzoo.hub.folder import find_source, load, schedule_arguments, write_folder
from sdzoo.hub.results import Results, recipe_of
from sdzoo.models.digest import digest, noted_digest
from sdzoo.models.survival import survival_probabilities
from sdzoo.training.launch import find_recipe

RECIPE = "fashion_mnist_resnet20"


def test_a_folder_has_these_files(published: Path):
    assert sorted(contents(published)) == FILES


def test_the_sums_are_those_of_sha256sum(published: Path):
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=published, capture_output=True)
    assert checked.returncode == 0
    assert len(checked.stdout.splitlines()) == len(FILES) - 1


def test_sums_cover_every_published_file(published: Path):
    lines = dict(line.split("  ")[::-1] for line in (published / "SHA256SUMS").read_text().splitlines())
    files = contents(published)
    del files["SHA256SUMS"]
    assert lines == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_same_weights_give_the_same_bytes(published: Path, run_folder: Path, tmp_path: Path):
    write_published(tmp_path / "again", run_folder)
    assert contents(tmp_path / "again") == contents(published)


def test_local_dir_loads_what_was_trained(published: Path, recwarn: pytest.WarningsRecorder):
    model = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    assert not [warning for warning in recwarn if "sdzoo" in str(warning.filename)]
    assert model.survival == survival_probabilities(9, 0.9)
    assert model.pretrained_cfg["label_names"][9] == "Ankle boot"
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 28, 28)
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(model(images), trained()(images), rtol=0, atol=0)


def test_the_config_and_the_graph_name_the_digest(published: Path):
    from sdzoo.runtime import Classifier

    expected = digest(trained().state_dict())
    config = yaml.safe_load((published / "config.json").read_text())
    assert noted_digest(config["pretrained_cfg"]) == expected
    assert Classifier(published / "onnx/model.onnx", "cpu").metadata.digest == expected


def test_no_path_of_the_training_machine_is_published(published: Path):
    found = [name for name, data in contents(published).items() if re.search(rb"/home/|~/runs|/tmp/", data)]
    assert found == []
    assert yaml.safe_load((published / "results/args.yaml").read_text())["epochs"] == 2


def test_the_card_has_the_metadata_the_hub_reads(run_folder: Path, tmp_path: Path):
    source = find_source(str(run_folder))
    model = load(source)
    results = Results("fashion_mnist", 93.5, 10_000, digest(model.state_dict()))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder(folder, REPOSITORY, source, model, results)
    card = ModelCard.load(folder / "README.md")
    (evaluated,) = card.data.eval_results
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "timm")
    assert card.data.datasets == ["zalando-datasets/fashion_mnist"]
    assert (evaluated.metric_value, evaluated.dataset_split) == (0.935, "test")
    assert "| Fashion-MNIST test | 10,000 | 6.50 % | 6.03 to 7.00 |" in card.text
    assert "20.00 %" in card.text  # validation: 100 - 80
    assert Results.read(folder / "results/results.json") == results


def test_the_card_tells_a_part_of_the_test_split_from_the_whole(run_folder: Path, tmp_path: Path):
    source = find_source(str(run_folder))
    model = load(source)
    results = Results("cifar10", 91.0, 1_000, digest(model.state_dict()), images="test_first_1000")
    write_folder(tmp_path, REPOSITORY, source, model, results)
    card = ModelCard.load(tmp_path / "README.md")
    assert not card.data.eval_results
    assert "| CIFAR-10 test (test_first_1000) | 1,000 | 9.00 % | 7.38 to 10.93 |" in card.text
    assert Results.read(tmp_path / "results/results.json") == results


def test_the_card_of_another_checkpoint_does_not_tell_the_best_ones_validation(run_folder: Path, tmp_path: Path):
    source = find_source(str(run_folder / "checkpoint-0.pth.tar"))
    write_folder(tmp_path, REPOSITORY, source, load(source), None)
    card = (tmp_path / "README.md").read_text()
    assert "validation" not in card and "| epochs | 2 |" in card


@pytest.mark.parametrize(
    ("changed", "recipe"),
    [
        ({}, RECIPE),
        ({"experiment": f"{RECIPE}-20260102-030405"}, RECIPE),
        ({"batch_size": 64}, ""),
        ({"experiment": f"{RECIPE}-20260102-030405", "seed": 2}, ""),
        ({"experiment": f"{RECIPE}-mine"}, ""),
        ({"experiment": "mine"}, ""),
        ({"experiment": None}, ""),
    ],
)
def test_the_recipe_is_told_where_its_values_were_trained(tmp_path: Path, changed: dict[str, object], recipe: str):
    run = write_run(tmp_path / "run", changed=find_recipe(RECIPE).values() | changed)
    write_published(tmp_path / "folder", run)
    assert recipe_of(find_source(str(run)).run.arguments()) == recipe
    said = "`sdzoo train fashion_mnist_resnet20` trains them again"
    assert (said in (tmp_path / "folder/README.md").read_text()) == bool(recipe)


def test_an_experiment_merely_named_like_a_recipe_is_not_told_as_it(published: Path):
    """It had 2 epochs."""
    assert "sdzoo train" not in (published / "README.md").read_text()


def test_results_of_other_weights_are_refused(run_folder: Path, tmp_path: Path):
    source = find_source(str(run_folder))
    results = Results("fashion_mnist", 93.5, 10_000, "0" * 64)
    with pytest.raises(InputError, match="results of weights with digest 0000"):
        write_folder(tmp_path, REPOSITORY, source, load(source), results)


@pytest.mark.parametrize("survival", ["linear", "uniform", [1.0, 0.9, 0.8, 1 / 3, 0.5, 0.5, 0.25, 0.7, 0.6]])
def test_schedule_arguments_give_the_schedule_back_exactly(survival):
    schedule = survival_probabilities(9, 0.8, survival)
    arguments = schedule_arguments(schedule)
    assert timm.create_model("sd_resnet20", **arguments).survival == schedule


def test_plain_weights_or_their_average_must_be_chosen(tmp_path: Path):
    source = find_source(str(write_run(tmp_path / "run", seed=0, ema_seed=1)))
    with pytest.raises(InputError, match="say --no-ema or --ema"):
        load(source)
    for ema, seed in ((False, 0), (True, 1)):
        assert digest(load(source, ema=ema).state_dict()) == digest(trained(seed).state_dict())


def test_an_average_that_is_not_there_is_refused(run_folder: Path):
    with pytest.raises(InputError, match="holds no moving average"):
        load(find_source(str(run_folder)), ema=True)


@pytest.mark.parametrize("given", ["nowhere", "sd_resnet20", "sd_resnet20.imagenet"])
def test_a_source_that_is_none_is_refused(given: str):
    with pytest.raises(InputError, match="no training folder, no checkpoint, and no weights that ship"):
        find_source(given)


def test_load_of_the_state_dict_names_every_tensor(published: Path):
    tensors = load_tensors((published / "model.safetensors").read_bytes())
    assert set(tensors) == {*trained().state_dict(), "digest"}
