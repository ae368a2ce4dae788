"""Providers and their options, as onnxruntime is given them on a machine with a GPU; IO binding, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from networks import images, network

from sdzoo.devices import run, run_bound, session
from sdzoo.errors import InputError
from sdzoo.export import write_onnx

Options = dict[str, dict[str, str]]


class FakeSession:
    """What onnxruntime would be on a machine with a GPU, as far as ``session`` looks."""

    opened: "list[FakeSession]"

    def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any) -> None:
        self.providers, self.options = dict(providers), options
        self.opened.append(self)

    def get_providers(self) -> list[str]:
        return list(self.providers)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSession]:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    FakeSession.opened = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeSession


def opened(path: Path, device: str, **kwargs: Any) -> Options:
    session(path, device, **kwargs)
    return FakeSession.opened[-1].providers


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("devices") / "model.onnx"
    write_onnx(network(), path, softmax=True)
    return path


def test_each_device_asks_for_its_providers_in_order(gpu: type[FakeSession], model_file: Path) -> None:
    assert list(opened(model_file, "auto")) == ["CUDAExecutionProvider"]
    assert list(opened(model_file, "cpu")) == ["CPUExecutionProvider"]
    assert list(opened(model_file, "tensorrt")) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


@pytest.mark.parametrize("device", ["auto", "cpu", "tensorrt"])
def test_a_file_that_is_missing(device: str, gpu: type[FakeSession], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.onnx: no such file$"):
        session(tmp_path / "missing.onnx", device)


def test_tf32_is_off_where_every_bit_counts_and_only_there(gpu: type[FakeSession], model_file: Path) -> None:
    for device in ("cuda", "tensorrt"):
        assert opened(model_file, device, exact=True)["CUDAExecutionProvider"]["use_tf32"] == "0"
        assert "use_tf32" not in opened(model_file, device)["CUDAExecutionProvider"]


def test_sixteen_bits_only_where_asked_for(gpu: type[FakeSession], model_file: Path) -> None:
    assert opened(model_file, "tensorrt-fp16")["TensorrtExecutionProvider"]["trt_fp16_enable"] == "1"
    assert "trt_fp16_enable" not in opened(model_file, "tensorrt")["TensorrtExecutionProvider"]


def test_engines_are_kept_for_each_file_of_its_own(gpu: type[FakeSession], model_file: Path, tmp_path: Path) -> None:
    """TensorRT's provider tells engines by the graph; other weights in the same graph must not find them."""
    write_onnx(network(seed=1), tmp_path / "other.onnx", softmax=True)
    (tmp_path / "copy.onnx").write_bytes(model_file.read_bytes())
    first, copy, other = (
        Path(opened(path, "tensorrt")["TensorrtExecutionProvider"]["trt_engine_cache_path"])
        for path in (model_file, tmp_path / "copy.onnx", tmp_path / "other.onnx")
    )
    assert first == copy != other
    assert all(folder.is_dir() and folder.is_relative_to(tmp_path / "cache" / "sdzoo") for folder in (first, other))


def test_the_number_of_threads(gpu: type[FakeSession], model_file: Path) -> None:
    session(model_file, "cpu", threads=3)
    session(model_file, "cpu")
    assert [opened.options.intra_op_num_threads for opened in gpu.opened] == [3, 0]


def test_openvino_has_the_number_of_threads_too(gpu: type[FakeSession], model_file: Path) -> None:
    onnxruntime.get_available_providers().append("OpenVINOExecutionProvider")
    exact = {"device_type": "CPU", "precision": "FP32"}
    assert opened(model_file, "openvino") == {"OpenVINOExecutionProvider": exact}
    assert opened(model_file, "openvino", threads=3) == {"OpenVINOExecutionProvider": {**exact, "num_of_threads": "3"}}


def test_bound_outputs_are_those_of_a_plain_run(model_file: Path) -> None:
    on_cpu, outputs = session(model_file, "cpu"), ["probabilities", "logits"]
    feed = {"images": images(3, 32, 32).transpose(0, 1, 3, 2)}  # not contiguous, as pixels from pictures are
    plain = run(on_cpu, outputs, feed)
    bound = run_bound(on_cpu, outputs, feed, "cpu")
    assert len(plain) == len(bound) == 2
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(bound, plain, strict=True))
