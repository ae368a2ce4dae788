import json
import math
from pathlib import Path

import pytest
import timm
import torch
from published import trained
from safetensors.torch import save_file

from sdzoo import weights
from sdzoo.cli import main
from sdzoo.errors import InputError
from sdzoo.hub import catalogue
from sdzoo.hub.catalogue import BEGIN, END, Entry, as_json, as_markdown, cost
from sdzoo.hub.results import Results
from sdzoo.models.digest import digest, with_digest
from sdzoo.models.registry import DEPTHS

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return catalogue.catalogue()


def formula(depth: int, size: int, classes: int) -> tuple[int, int]:
    """Parameters and MACs of the paper's network: 3x3 convolutions, two BN numbers a channel, one linear layer."""
    n = (depth - 2) // 6
    parameters = 3 * 9 * 16 + 2 * 16
    macs = 3 * 9 * 16 * size**2
    inputs = 16
    for stage, channels in enumerate((16, 32, 64)):
        pixels = math.ceil(size / 2**stage) ** 2
        convolutions = 9 * channels * (inputs + (2 * n - 1) * channels)
        parameters += convolutions + 2 * n * 2 * channels
        macs += convolutions * pixels
        inputs = channels
    return parameters + 65 * classes, macs + 64 * classes


@pytest.mark.parametrize(("depth", "size", "classes"), [(20, 32, 10), (20, 28, 10), (32, 33, 100), (56, 32, 10)])
def test_cost_is_that_of_the_formula(depth: int, size: int, classes: int):
    with torch.device("meta"):
        model = timm.create_model(f"sd_resnet{depth}", num_classes=classes)
    assert cost(model, (3, size, size)) == formula(depth, size, classes)


def test_every_name_of_the_zoo_has_its_line(entries: list[Entry]):
    assert len(entries) >= len(DEPTHS)
    assert {entry.name for entry in entries} == set(timm.list_models("sd_resnet*", include_tags=True))
    for entry in entries:
        depth = int(entry.name.partition(".")[0].removeprefix("sd_resnet"))
        assert (entry.parameters, entry.macs) == formula(depth, entry.input_size[1], 10)
        assert entry.blocks == (depth - 2) // 2


def test_expected_blocks_without_weights_are_those_of_the_paper(entries: list[Entry]):
    """At p_L = 0.5 the expected number of open blocks is (3 L - 1) / 4: 40.25 of 54 (paper, section 3)."""
    untrained = [entry for entry in entries if not entry.weights]
    assert untrained
    for entry in untrained:
        assert entry.expected_blocks == pytest.approx((3 * entry.blocks - 1) / 4)


def test_shipped_weights_bring_their_schedule_and_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A tag is registered at import where its file exists; here the file comes later, so timm is told."""
    model = trained()
    save_file(with_digest(model.state_dict()), tmp_path / "sd_resnet20.cifar10.safetensors")
    results = Results("cifar10", 91.23, 10_000, digest(model.state_dict()), recipe="some_recipe")
    (tmp_path / "sd_resnet20.cifar10.json").write_text(results.encode())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr("timm.create_model", lambda name: timm.models.create_model(name.partition(".")[0]))
    entry = catalogue._entry("sd_resnet20.cifar10")
    assert (entry.weights, entry.test_error, entry.test_images) == ("shipped", 8.77, 10_000)
    assert entry.recipe == "some_recipe"
    assert entry.expected_blocks == pytest.approx(9 - 0.1 * 5)  # the sum of 1 - l/9 * 0.1


def test_damaged_results_are_said(tmp_path: Path):
    for text in ("", "[]", "{}", '{"tag": "cifar10", "test": 3}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="no readable results"):
            Results.read(tmp_path / "x.json")


def test_json_has_the_fields_and_the_table_a_line_each(entries: list[Entry]):
    decoded = json.loads(as_json(entries))
    assert [line["name"] for line in decoded] == [entry.name for entry in entries]
    assert set(decoded[0]) == set(Entry.__dataclass_fields__)
    lines = as_markdown(entries).splitlines()
    assert (lines[0], lines[-1]) == (BEGIN, END)
    assert len(lines) == 4 + len(entries)
    assert len({line.count("|") for line in lines[1:-1]}) == 1


def test_the_readme_has_this_catalogue(entries: list[Entry]):
    text = README.read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    assert text[begin:end] == as_markdown(entries), "run `sdzoo info --markdown` and put its output into README.md"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "sd_resnet20"), (["--json"], '"name": "sd_resnet20'), (["--markdown"], "| sd_resnet20")],
)
def test_the_command_prints_them(arguments: list[str], expected: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["info", "sd_resnet20", *arguments])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert expected in out and "sd_resnet32" not in out


def test_an_unknown_network_is_said_with_near_names(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["info", "sd_resnet21"])
    assert ended.value.code == 1
    assert "unknown model 'sd_resnet21'; near names: " in capsys.readouterr().err
