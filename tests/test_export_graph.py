"""The ONNX graph: right in onnxruntime, valid, the same bytes everywhere, fast to write."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import torch
from disk import file_size_limit
from networks import FASHION, images, network
from numpy.typing import NDArray

import sdzoo
from sdzoo import SdResNet, survival_probabilities
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.export.graph import build
from sdzoo.models.digest import digest
from sdzoo.models.registry import DEPTHS

# float32 against float64: 6e-8 a rounding, 5e-7 measured over all depths, and a margin for other processors.
RELATIVE = 2e-5
OPERATORS = {"Conv", "Relu", "Add", "Pad", "AveragePool", "GlobalAveragePool", "Flatten", "Gemm"}


def run(path: Path | bytes, feed: NDArray[np.generic], outputs: list[str] | None = None) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"images": feed})


def error(ours: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def assert_agrees(model: SdResNet, path: Path, H: int, W: int) -> None:
    write_onnx(model, path, size=(H, W))
    x = images(2, H, W)
    expected = reference.logits(model.state_dict(), x)
    spread = np.ptp(expected, axis=0).max() / np.abs(expected).max()
    assert spread > 500 * RELATIVE, "the logits must depend on the image"
    assert error(run(path, x)[0], expected) < RELATIVE


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_network_agrees_with_the_reference(depth: int, tmp_path: Path) -> None:
    model, size = network(f"sd_resnet{depth}"), 12 if depth == 1202 else 28
    for p_L in (1.0, 0.5, 0.2):
        model.set_survival(survival_probabilities(len(model.survival), p_L))
        assert_agrees(model, tmp_path / "model.onnx", size, size)


@pytest.mark.parametrize(("H", "W"), [(28, 28), (30, 30), (32, 32), (33, 33), (8, 41)])
def test_every_size_agrees_with_the_reference(H: int, W: int, tmp_path: Path) -> None:
    assert_agrees(network("sd_resnet20", seed=1), tmp_path / "model.onnx", H, W)


@pytest.mark.parametrize("size", [28, 30, 32, 33])
@pytest.mark.parametrize(
    "depth", [pytest.param(depth, marks=pytest.mark.slow if depth > 152 else ()) for depth in DEPTHS if depth > 20]
)
def test_every_depth_agrees_at_every_size(depth: int, size: int, tmp_path: Path) -> None:
    assert_agrees(network(f"sd_resnet{depth}", p_L=0.2, seed=2), tmp_path / "model.onnx", size, size)


def test_a_schedule_of_its_own_and_another_head_and_input(tmp_path: Path) -> None:
    survival = tuple(0.3 + 0.07 * block for block in range(9))
    model = network(survival=survival, p_L=survival[-1], num_classes=7)
    assert_agrees(model, tmp_path / "model.onnx", 16, 16)


@pytest.mark.parametrize(("depth", "input"), [(20, "float32"), (20, "uint8"), (1202, "float32")])
def test_the_graph_is_valid(depth: int, input: str) -> None:
    proto = build(network(f"sd_resnet{depth}"), input=input, softmax=True)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape for value in inferred.graph.value_info}
    assert len(shapes) >= len(proto.graph.node) - 2  # every tensor between input and outputs
    assert [dim.dim_value or dim.dim_param for dim in shapes["layer3.0.add"].dim] == ["batch", 64, 8, 8]


def test_operators_versions_inputs_and_outputs() -> None:
    proto = build(network("sd_resnet110"))
    counts = Counter(node.op_type for node in proto.graph.node)
    assert set(counts) == OPERATORS
    assert counts["Conv"] == counts["Relu"] == 109
    assert counts["Add"] == 54
    assert counts["Pad"] == counts["AveragePool"] == 2
    assert (proto.ir_version, proto.producer_name) == (8, "sdzoo")
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 17)]
    kinds = {value.name: value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)}
    assert {name: kind.elem_type for name, kind in kinds.items()} == {"images": 1, "logits": 1}
    dims = {name: [dim.dim_param or dim.dim_value for dim in kind.shape.dim] for name, kind in kinds.items()}
    assert dims == {"images": ["batch", 3, 32, 32], "logits": ["batch", 10]}


def test_names_follow_the_parameters() -> None:
    model = network()
    proto = build(model)
    nodes = {node.name for node in proto.graph.node}
    kept = {name: tuple(p.shape) for name, p in model.named_parameters() if "bn" not in name}
    assert len(kept) == 19 + 2
    assert {name.rpartition(".")[0] for name in kept} <= nodes
    assert kept.items() <= {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}.items()
    assert len(nodes) == len(proto.graph.node)


def test_metadata(tmp_path: Path) -> None:
    model = network(p_L=0.3, cfg={**FASHION, "tag": "fashion_mnist"})
    write_onnx(model, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert facts == {
        "model": "sd_resnet20",
        "tag": "fashion_mnist",
        "labels": list(FASHION["label_names"]),
        "mean": [0.2860] * 3,
        "std": [0.3530] * 3,
        "p_L": model.survival[-1],
        "schedule": list(model.survival),
        "digest": digest(model.state_dict()),
        "version": sdzoo.__version__,
        "precision": "float32",
    }
    assert proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value == 28


def test_labels_of_another_number_of_classes_are_numbers() -> None:
    facts = {entry.key: entry.value for entry in build(network(num_classes=3)).metadata_props}
    assert json.loads(facts["labels"]) == ["0", "1", "2"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_free_and_images_do_not_touch_each_other(batch: int, tmp_path: Path) -> None:
    write_onnx(network(), tmp_path / "model.onnx")
    x = images(batch, 32, 32)
    together = run(tmp_path / "model.onnx", x)[0]
    single = np.concatenate([run(tmp_path / "model.onnx", image[None])[0] for image in x])
    assert together.shape == (batch, 10)
    assert error(together, single) < RELATIVE


def test_uint8_input_takes_raw_pixels(tmp_path: Path) -> None:
    model = network()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 33, 30), dtype=np.uint8)
    pixels[0] = 255  # a border of zeros after the subtraction is not a border of zeros before it
    mean, std = (np.array(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = reference.logits(model.state_dict(), (pixels / 255 - mean) / std)
    write_onnx(model, tmp_path / "model.onnx", size=(33, 30), input="uint8")
    assert error(run(tmp_path / "model.onnx", pixels)[0], expected) < RELATIVE
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert set(kinds) == OPERATORS | {"Cast", "Sub"}


def test_softmax_adds_an_output_and_changes_none(tmp_path: Path) -> None:
    model, x = network(), images(4, 32, 32)
    write_onnx(model, tmp_path / "plain.onnx")
    write_onnx(model, tmp_path / "softmax.onnx", softmax=True)
    (plain,) = run(tmp_path / "plain.onnx", x)
    logits, probabilities = run(tmp_path / "softmax.onnx", x, ["logits", "probabilities"])
    assert (logits == plain).all()
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


def test_onnxruntime_fuses_every_sum_and_relu(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that such a file is for one machine only
    proto = build(network("sd_resnet110"))
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["Conv"] == 109
    assert counts["Add"] == counts["Relu"] == 0


def torch_exported(model: SdResNet, x: NDArray[np.float32], path: Path) -> None:
    torch.onnx.export(model, (torch.from_numpy(x),), path, input_names=["images"], dynamo=True, verbose=False)


@pytest.mark.parametrize(
    "depth", [20, pytest.param(110, marks=pytest.mark.slow), pytest.param(1202, marks=pytest.mark.slow)]
)
def test_the_torch_exporter_s_graph_agrees(depth: int, tmp_path: Path) -> None:
    model, x = network(f"sd_resnet{depth}"), images(2, 17, 16)
    write_onnx(model, tmp_path / "ours.onnx", size=(17, 16))
    torch_exported(model, x, tmp_path / "theirs.onnx")
    assert error(run(tmp_path / "ours.onnx", x)[0], run(tmp_path / "theirs.onnx", x)[0]) < RELATIVE


WRITE = """
import torch
from networks import network
from sdzoo.export import write_onnx
torch.set_num_threads(2)
model = network(seed=99)
model.load_state_dict(torch.load("../weights.pt", weights_only=True))
write_onnx(model, "elsewhere.onnx", input="uint8", softmax=True)
"""


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """In another process, folder, hash seed, number of threads, and after other work in the same process."""
    model = network()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    write_onnx(network("sd_resnet32"), tmp_path / "other.onnx")
    write_onnx(model, tmp_path / "here.onnx", input="uint8", softmax=True)
    write_onnx(model, tmp_path / "again.onnx", input="uint8", softmax=True)

    folder = tmp_path / "another folder"
    folder.mkdir()
    paths = f"{Path(sdzoo.__file__).parents[1]}{os.pathsep}{Path(__file__).parent}"
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "2", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", WRITE], cwd=folder, env=environment, check=True)

    expected = (tmp_path / "here.onnx").read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == expected
    assert (folder / "elsewhere.onnx").read_bytes() == expected
    assert str(tmp_path).encode() not in expected


def test_other_weights_give_other_bytes() -> None:
    model = network()
    before = build(model).SerializeToString()
    model.layer2[1].bn1.running_mean[3] += 1e-3
    assert build(model).SerializeToString() != before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"size": (7, 32)}, "7 x 32.* 8"), ({"input": "float16"}, "'float16'.*float32, uint8")],
)
def test_arguments_are_checked(kwargs: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_onnx(network(), tmp_path / "model.onnx", **kwargs)
    assert not list(tmp_path.iterdir())


def test_statistics_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(InputError, match="1 input channels, its mean 3"):
        build(network(in_chans=1))
    grey = {"mean": (0.286,), "std": (0.353,), "input_size": (1, 28, 28)}
    assert build(network(in_chans=1, cfg=grey)).graph.input[0].name == "images"


def test_a_network_without_configuration_is_refused() -> None:
    with pytest.raises(InputError, match=r"timm\.create_model"):
        build(SdResNet(20))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    with file_size_limit(500_000), pytest.raises(OSError, match="File too large"):
        write_onnx(network(), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]
