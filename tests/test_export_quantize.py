"""Smaller files: 7-bit weights that no processor overflows, the same bytes everywhere, and an honest report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
from commandline import Run
from networks import CIFAR, lively_network, network
from numpy.typing import NDArray
from PIL import Image

import sdzoo as package
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.export.quality import images_to_calibrate, images_to_measure, measure
from sdzoo.export.quantize import KINDS, quantize
from sdzoo.runtime import Classifier
from sdzoo.samples import CALIBRATION, folder_name, read_samples

FEW = [sample.path for sample in read_samples(CALIBRATION)[::10]]
TEST = [sample.path for sample in read_samples()[::4]]
BLOCKS = 9  # of sd_resnet20
CONVOLUTIONS = 1 + 2 * BLOCKS


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks at a time."""
    monkeypatch.setattr("sdzoo.export.quality.ROUNDS", 1)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "model.onnx"
    write_onnx(lively_network(), path)
    return path


@pytest.fixture(scope="module")
def int8(float32: Path) -> Path:
    path = float32.with_name("int8.onnx")
    quantize(float32, path, "int8", calibration=FEW)
    return path


@pytest.fixture(scope="module")
def fp16(float32: Path) -> Path:
    path = float32.with_name("fp16.onnx")
    quantize(float32, path, "fp16")
    return path


def tensors(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def counted(path: Path, tmp_path: Path) -> dict[str, int]:
    """Count the operators that onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


def spread(logits: NDArray[np.float32]) -> float:
    return float(np.ptp(logits, axis=0).max())


# --- int8


def test_weights_have_seven_bits_and_a_scale_for_each_channel(int8: Path) -> None:
    found = tensors(int8)
    weights = {name: array for name, array in found.items() if array.dtype == np.int8 and array.ndim == 4}
    assert len(weights) == CONVOLUTIONS
    for name, weight in weights.items():
        assert np.abs(weight.astype(int)).max() <= 64, name
        assert np.abs(weight.astype(int)).max() > 50, f"{name} uses less than its range"
        scale = found[name.replace("_quantized", "_scale")]
        assert scale.shape == (len(weight),) and len(np.unique(scale)) > 1


def test_weights_are_those_of_the_float32_file(float32: Path, int8: Path) -> None:
    before, after = tensors(float32), tensors(int8)
    names = [name for name in before if name.endswith("weight") and before[name].ndim == 4]
    assert len(names) == CONVOLUTIONS
    for name in names:
        scale = after[f"{name}_scale"][:, None, None, None]
        assert (np.abs(after[f"{name}_quantized"] * scale - before[name]) <= 0.5001 * scale).all(), name


def test_every_convolution_and_sum_runs_in_integers(int8: Path, tmp_path: Path) -> None:
    counts = counted(int8, tmp_path)
    assert counts["QLinearConv"] == CONVOLUTIONS
    assert counts["QLinearAdd"] == BLOCKS
    assert counts["AveragePool"] == 2 and counts["Gemm"] == 1
    assert "Conv" not in counts and "Relu" not in counts


def test_the_kernels_answer_as_the_emulation_in_floats(int8: Path) -> None:
    """Without optimisations onnxruntime computes the same graph in floats, which cannot overflow."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    emulation = onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    classifier = Classifier(int8, "cpu")
    feed = {"images": classifier.images(classifier.pixels(TEST))}
    expected, ours = emulation.run(["logits"], feed)[0], classifier.logits(TEST)
    assert np.abs(ours - expected).max() < 0.01 * spread(expected)


def test_int8_answers_nearly_as_float32(float32: Path, int8: Path) -> None:
    expected, ours = Classifier(float32, "cpu").logits(TEST), Classifier(int8, "cpu").logits(TEST)
    assert 0 < np.abs(ours - expected).max() < 0.05 * spread(expected)


def test_ranges_are_kept_in_three_digits(int8: Path) -> None:
    """Processors differ in the seventh: the scales, and so the bytes, must not."""
    found = tensors(int8)
    scales = [array for name, array in found.items() if name.endswith("relu1_scale")]
    assert len(scales) == BLOCKS
    for scale in scales:  # from 0 to the largest value, in 255 steps
        largest = 255 * float(scale)
        assert largest == pytest.approx(float(f"{largest:.3g}"), rel=1e-6)


# --- fp16


def test_fp16_halves_every_number(float32: Path, fp16: Path) -> None:
    before, after = tensors(float32), tensors(fp16)
    assert len(before) == len(after) and len(before) > CONVOLUTIONS
    for name, array in after.items():
        assert array.dtype == (np.int64 if before[name].dtype == np.int64 else np.float16), name
    assert fp16.stat().st_size < 0.53 * float32.stat().st_size
    for value in (*onnx.load(fp16).graph.input, *onnx.load(fp16).graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_fp16_answers_nearly_as_float32(float32: Path, fp16: Path) -> None:
    expected, ours = Classifier(float32, "cpu").logits(TEST), Classifier(fp16, "cpu").logits(TEST)
    assert 0 < np.abs(ours - expected).max() < 0.01 * spread(expected)


# --- both


@pytest.mark.parametrize("kind", KINDS)
def test_facts_travel_on_and_the_precision_is_told(
    kind: str, float32: Path, int8: Path, fp16: Path, tmp_path: Path
) -> None:
    smaller = {"int8": int8, "fp16": fp16}[kind]
    onnx.checker.check_model(onnx.load(smaller), full_check=True)
    facts, expected = (Classifier(path, "cpu").metadata for path in (smaller, float32))
    assert expected.precision == "float32"
    assert facts.precision == kind
    assert facts.encode() | {"precision": '"float32"'} == expected.encode()
    assert str(float32.parent).encode() not in smaller.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kwargs", [{"input": "uint8", "softmax": True, "top": 3}, {"batch": 3, "opset": 23}])
def test_every_graph_can_be_made_smaller(kwargs: dict[str, Any], kind: str, tmp_path: Path) -> None:
    write_onnx(lively_network(), tmp_path / "model.onnx", **kwargs)
    quantize(tmp_path / "model.onnx", tmp_path / "small.onnx", kind, calibration=FEW)
    before, after = (Classifier(tmp_path / f"{name}.onnx", "cpu") for name in ("model", "small"))
    assert [(value.name, value.type, value.shape) for value in before.session.get_outputs()] == [
        (value.name, value.type, value.shape) for value in after.session.get_outputs()
    ]
    expected, ours = before.logits(TEST[:7]), after.logits(TEST[:7])
    assert np.abs(ours - expected).max() < 0.1 * spread(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_to_keep_stay_in_float32(kind: str, float32: Path, tmp_path: Path) -> None:
    keep = ["conv1", "layer2.1.conv2"]
    quantize(float32, tmp_path / "small.onnx", kind, calibration=FEW, keep=keep)
    found = tensors(tmp_path / "small.onnx")
    expected = tensors(float32)
    kept = [name for name in expected if name in found and found[name].dtype == np.float32 and found[name].ndim == 4]
    assert sorted(kept) == [f"{name}.weight" for name in keep]
    assert all((found[name] == expected[name]).all() for name in kept)


QUANTIZE = """
import sys
from pathlib import Path
from sdzoo.export.quantize import quantize
for kind in ("int8", "fp16"):
    quantize(Path(sys.argv[1]), Path(f"{kind}.onnx"), kind, calibration=sys.argv[2:])
"""


def test_the_same_graph_and_images_give_the_same_bytes(float32: Path, int8: Path, fp16: Path, tmp_path: Path) -> None:
    """In another process, folder, hash seed, and with another number of threads."""
    (tmp_path / "elsewhere.onnx").write_bytes(float32.read_bytes())
    path = str(Path(package.__file__).parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "2", "PYTHONPATH": path}
    command = [sys.executable, "-c", QUANTIZE, "elsewhere.onnx", *FEW]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "int8.onnx").read_bytes() == int8.read_bytes()
    assert (tmp_path / "fp16.onnx").read_bytes() == fp16.read_bytes()


def test_what_cannot_be_quantised_is_refused(float32: Path, int8: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.onnx"
    for source, kind, kwargs, message in [
        (float32, "int4", {"calibration": FEW}, "'int4', must be one of int8, fp16"),
        (float32, "int8", {}, "images to calibrate"),
        (int8, "fp16", {}, "is int8 already"),
        (float32, "fp16", {"keep": ["layer9"]}, "no node 'layer9'"),
        (tmp_path / "missing.onnx", "fp16", {}, "missing.onnx"),
    ]:
        with pytest.raises(InputError, match=message):
            quantize(source, target, kind, **kwargs)
        assert not target.exists()


# --- what it costs


# --- the command


def test_the_command_reports_and_writes_beside_the_file(run: Run, float32: Path, int8: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(float32.read_bytes())
    printed = run("quantize", "model.onnx", "--keep", "conv1", "--max-loss", "100")
    for row in ("200 images", "size in MB", "top-1 accuracy", "same top-1 class", "time at batch 32", "sample"):
        assert row in printed
    assert "in float32: pools and classifier, conv1" in printed
    assert f"written: {tmp_path / 'model_int8.onnx'}" in printed
    assert Classifier(tmp_path / "model_int8.onnx", "cpu").metadata.precision == "int8"
    printed = run("quantize", "model.onnx", "--kind", "fp16", "--max-loss", "100", "--output", "half.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.onnx", "model.onnx", "model_int8.onnx"]


def test_the_command_takes_images_of_the_user(run: Run, tmp_path: Path) -> None:
    write_onnx(network(cfg=CIFAR), tmp_path / "cifar.onnx")
    for folder in ("calibration", "test"):
        for number, label in enumerate(CIFAR["label_names"]):
            (tmp_path / folder / folder_name(label)).mkdir(parents=True)
            Image.open(TEST[number]).resize((40, 40)).save(tmp_path / folder / folder_name(label) / "one.png")
    given = ["--calibration", "calibration", "--images", "test", "--max-loss", "100"]
    printed = run("quantize", "cifar.onnx", *given)
    assert "10 images" in printed and "accuracy on test" in printed


def test_a_loss_beyond_what_is_allowed_writes_nothing(run: Run, float32: Path, tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(b"old")
    error = run("quantize", float32, "--output", "small.onnx", "--max-loss=-100", fails=True)
    assert error.startswith("error: int8 loses ") and "allowed are -100" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "small.onnx"]
    assert (tmp_path / "small.onnx").read_bytes() == b"old"


def test_the_command_never_replaces_the_file_it_reads(run: Run, float32: Path, tmp_path: Path) -> None:
    copy = shutil.copy(float32, tmp_path / "model.onnx")
    assert "is the file to read" in run("quantize", "model.onnx", "--output", copy, fails=True)
    assert copy.read_bytes() == float32.read_bytes()


def test_verify_and_quantize_refuse_a_smaller_file(run: Run, int8: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(lively_network().state_dict(), tmp_path / "weights.safetensors")
    assert "is int8" in run("verify", int8, "--checkpoint", "weights.safetensors", fails=True)
    assert "is int8 already" in run("quantize", int8, fails=True)
    assert "'int4'" in run("quantize", int8, "--kind", "int4", fails=True)


# --- trained weights


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trained_weights_lose_little(kind: str, fashion_mnist_files: Path, tmp_path: Path) -> None:
    """At most 0.1 points on 10,000 images, and twice the standard error (0.05 points) of so few different answers."""
    from sdzoo.checkpoints import load_model

    write_onnx(load_model("sd_resnet20.fashion_mnist"), tmp_path / "model.onnx")
    before = Classifier(tmp_path / "model.onnx", "cpu")
    quantize(
        tmp_path / "model.onnx", tmp_path / "small.onnx", kind, calibration=images_to_calibrate(before.metadata, None)
    )
    images = images_to_measure(before.metadata, None, fashion_mnist_files)
    quality = measure(before, Classifier(tmp_path / "small.onnx", "cpu"), images)
    assert quality.smaller.n == 10_000
    assert quality.loss < 0.2
    assert quality.agreement > 99.5
