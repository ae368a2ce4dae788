"""Converted timm networks as ONNX files: the same answers, the same bytes everywhere, p_l folded."""

import argparse
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from commandline import sdzoo
from onnx import TensorProto, helper, numpy_helper
from skip_families import FAMILIES, images, network
from torch import nn

from sdzoo import skip_drop_path
from sdzoo.adapted import load_adapted
from sdzoo.errors import InputError
from sdzoo.export.adapted import Written, metadata_of, write_adapted_onnx
from sdzoo.export.survival import SCOPE, SOURCE, fold_survival, survival_products
from sdzoo.export.verify import compare
from sdzoo.metadata import Metadata
from sdzoo.models import skip_names  # noqa: F401  registers skip_*
from sdzoo.runtime import Classifier, session
from sdzoo.samples import read_samples

# Relative to the largest logit: both sides round to float32 in another order.
TOLERANCE = 2e-5


@cache
def exported(family: str, rule: str, folder: Path) -> tuple[nn.Module, Path, Written]:
    """Export once for several tests."""
    model = skip_drop_path(network(family), rule=rule, schedule="linear").eval()
    file = folder / f"{family}-{rule}.onnx"
    written = write_adapted_onnx(model, file, size=FAMILIES[family][1:2] * 2, softmax=family == "ResNet")
    return model, file, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapted")


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("ViT", "ConvNeXt", "EfficientNet")]


@pytest.mark.parametrize("family", ["ResNet", *SLOW])
def test_papers_rule_answers_as_pytorch_and_leaves_no_product(family: str, folder: Path) -> None:
    model, file, written = exported(family, "paper", folder)
    L = len(model._draws.gates.survival)
    assert written == Written(folded=L, left=())
    x = images(family, batch=3)
    (logits, *_) = session(file, "cpu").run(None, {"images": x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_inverted_rule_has_the_products_of_the_papers_rule_after_folding(folder: Path) -> None:
    """timm's own evaluation: nothing to fold, and the paper's graph has no product more."""
    _, paper, _ = exported("ResNet", "paper", folder)
    _, inverted, written = exported("ResNet", "inverted", folder)
    assert written == Written(folded=0, left=())
    kinds = [Counter(node.op_type for node in onnx.load(file).graph.node) for file in (paper, inverted)]
    assert kinds[0] == kinds[1]


def test_graph_and_metadata(folder: Path) -> None:
    model, file, _ = exported("ResNet", "paper", folder)
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.name for entry in proto.graph.input] == ["images"]
    assert [entry.name for entry in proto.graph.output] == ["logits", "probabilities"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    metadata = Metadata.decode({entry.key: entry.value for entry in proto.metadata_props})
    assert metadata == metadata_of(model)
    assert metadata.model == "skip_test_resnet"
    assert metadata.schedule == model._draws.gates.survival
    (_, probabilities) = session(file, "cpu").run(None, {"images": images("ResNet").numpy()})
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_no_path_and_no_stack_trace_is_left(folder: Path) -> None:
    _, file, _ = exported("ResNet", "paper", folder)
    content = file.read_bytes()
    for word in (b"stack_trace", b"site-packages", b".py", str(Path.cwd()).encode(), b"pytorch"):
        assert word not in content, word


@pytest.mark.slow
def test_the_same_bytes_from_two_processes_in_two_folders(tmp_path: Path) -> None:
    program = (
        "import timm, torch, sdzoo; from sdzoo.export.adapted import write_adapted_onnx; torch.manual_seed(0);"
        "model = sdzoo.skip_drop_path(timm.create_model('test_resnet', drop_path_rate=.4), rule='paper');"
        "write_adapted_onnx(model, 'model.onnx', size=(64, 64))"
    )
    contents = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, [str(Path.cwd()), *sys.path]))}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path / seed, env=environment, check=True)
        contents.append((tmp_path / seed / "model.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_the_same_bytes_from_two_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file, _ = exported("ResNet", "paper", folder)
    monkeypatch.chdir(tmp_path)
    write_adapted_onnx(model, "again.onnx", size=(64, 64), softmax=True)
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_classifier_and_verification_take_the_file(folder: Path) -> None:
    model, file, _ = exported("ResNet", "paper", folder)
    classifier = Classifier(file, "cpu")
    comparison = compare(classifier, model, read_samples()[:4])
    comparison.check()
    assert comparison.agreement == 1.0


@pytest.mark.slow
def test_a_branch_that_ends_in_squeeze_and_excite_keeps_its_product(tmp_path: Path) -> None:
    model = skip_drop_path(timm.create_model("seresnet18", drop_path_rate=0.4), rule="paper", schedule="linear")
    written = write_adapted_onnx(model, tmp_path / "se.onnx", size=(64, 64))
    assert written.folded == 0 and len(written.left) == 8


def test_training_mode_is_kept_and_only_converted_networks_are_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this ResNet skips no paths"):
        write_adapted_onnx(network("ResNet"), tmp_path / "model.onnx")
    model = skip_drop_path(nn.Sequential(network("ResNet")))
    with pytest.raises(InputError, match="no pretrained_cfg"):
        write_adapted_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# --- folding, on graphs written by hand


def graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    product = next(node for node in nodes if node.name == "product")
    product.metadata_props.add(key=SCOPE, value=SOURCE)
    tensors = [numpy_helper.from_array(value.astype("f4"), name) for name, value in weights.items()]
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(proto: onnx.ModelProto, tmp_path: Path) -> np.ndarray:
    onnx.save(proto, tmp_path / "g.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("f4")
    (y,) = session(tmp_path / "g.onnx", "cpu").run(None, {"x": x})
    return y


NODE = helper.make_node
W, B, P = np.random.default_rng(1).normal(size=(3, 3)), np.arange(3.0), np.float32(0.6)
FOLDABLE = {
    "Gemm": [NODE("Gemm", ["x", "W", "B"], ["f"]), NODE("Mul", ["f", "p"], ["y"], "product")],
    "MatMul, Add": [
        NODE("MatMul", ["x", "W"], ["m"]),
        NODE("Add", ["B", "m"], ["f"]),
        NODE("Mul", ["p", "f"], ["y"], "product"),
    ],
    "layer scale after a transpose": [
        NODE("MatMul", ["x", "W"], ["m"]),
        NODE("Mul", ["m", "B"], ["s"]),
        NODE("Transpose", ["s"], ["f"]),
        NODE("Mul", ["f", "p"], ["y"], "product"),
    ],
    "weight shared with another layer": [
        NODE("MatMul", ["x", "W"], ["h"]),
        NODE("Gemm", ["h", "W", "B"], ["f"]),
        NODE("Mul", ["f", "p"], ["y"], "product"),
    ],
}
STUCK = {
    "no affine operation": [NODE("Relu", ["x"], ["f"]), NODE("Mul", ["f", "p"], ["y"], "product")],
    "result used twice": [
        NODE("Gemm", ["x", "W", "B"], ["f"]),
        NODE("Mul", ["f", "p"], ["s"], "product"),
        NODE("Add", ["s", "f"], ["y"]),
    ],
    "a product of two branches": [
        NODE("MatMul", ["x", "W"], ["m"]),
        NODE("Sigmoid", ["x"], ["g"]),
        NODE("Mul", ["m", "g"], ["f"]),
        NODE("Mul", ["f", "p"], ["y"], "product"),
    ],
}


@pytest.mark.parametrize("case", [*FOLDABLE, *STUCK])
def test_folding(case: str, tmp_path: Path) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (FOLDABLE | STUCK)[case]]
    proto = graph(nodes, {"W": W, "B": B, "p": P})
    before = run(proto, tmp_path)
    left = fold_survival(proto, survival_products(proto))
    assert left == ([] if case in FOLDABLE else ["product"])
    assert any(node.name == "product" for node in proto.graph.node) == (case in STUCK)
    assert np.allclose(run(proto, tmp_path), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("trained", "asked", "said"),
    [
        (0.0, None, "constant depth: it is timm's own network"),
        (None, None, "its DropPath rate is not known"),
        (None, 1.0, r"its DropPath rate is 1, must be in \(0, 1\)"),
        (0.2, 0.3, r"trained with drop_path 0\.2, --drop-path asks for 0\.3"),
    ],
)
def test_the_rate_is_that_of_the_weights(trained: float | None, asked: float | None, said: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "trained.pth.tar"
    arguments = argparse.Namespace(drop_path=trained)
    torch.save({"state_dict": timm.create_model("test_resnet").state_dict(), "args": arguments}, checkpoint)
    with pytest.raises(InputError, match=said):
        load_adapted("skip_test_resnet", checkpoint=checkpoint, drop_path=asked)


def test_commands_export_and_verify_a_converted_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = timm.create_model("skip_test_resnet", drop_path_rate=0.4, rule="paper")
    checkpoint, file = tmp_path / "trained.pth.tar", tmp_path / "model.onnx"
    arguments = argparse.Namespace(drop_path=0.4, model_kwargs={"rule": "paper"}, num_classes=1000)
    torch.save({"state_dict": model.state_dict(), "args": arguments}, checkpoint)
    sdzoo("export", "--model", "skip_test_resnet", "--checkpoint", checkpoint, "--output", file)
    assert "survival probabilities are folded into the branches" in capsys.readouterr().out
    sdzoo("verify", file, "--checkpoint", checkpoint)
    sdzoo("verify", file, expect=1)
    sdzoo("verify", file, "--checkpoint", checkpoint, "--drop-path", "0.3", expect=1)
    assert "trained with drop_path 0.4, --drop-path asks for 0.3" in capsys.readouterr().err
    sdzoo("export", "--model", "skip_test_resnet", "--checkpoint", checkpoint, "--input", "uint8", expect=1)
    assert "--input, --top, --batch and --opset are for the networks of the zoo" in capsys.readouterr().err
