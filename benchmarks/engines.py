"""The ways to run one trained network that the benchmark of inference compares: images in memory to logits in memory.

Every engine gets the same weights, the same number of threads and float32 where its name says nothing else.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.utils.onnx import onnx_export
from torch import nn

from sdzoo import SdResNet
from sdzoo.devices import on_gpu, run, session
from sdzoo.export import write_onnx
from sdzoo.export.quantize import quantize

Images = NDArray[np.float32]  # [batch, 3, 32, 32]
Engine = Callable[[Images], NDArray[np.float32]]

SIZE = 32
CALIBRATION = 8  # images; the ranges do not change the time


@dataclass(frozen=True)
class Setup:
    """What all engines of one depth share.

    Attributes:
        depth: Of the network.
        device: Where to run, as ``sdzoo.runtime.session`` takes it.
        threads: Threads on the CPU.
        folder: For the files that engines write.
    """

    depth: int
    device: str
    threads: int
    folder: Path

    @cached_property
    def network(self) -> SdResNet:
        """The network with random weights, which take as long as trained ones."""
        torch.manual_seed(0)
        network: SdResNet = timm.create_model(f"sd_resnet{self.depth}")
        return network.eval()

    @property
    def torch_device(self) -> str:
        """Where PyTorch is to run."""
        return "cuda" if on_gpu(self.device) else "cpu"

    @cached_property
    def file(self) -> Path:
        """Our graph."""
        path = self.folder / "sdzoo.onnx"
        write_onnx(self.network, path, size=(SIZE, SIZE))
        return path

    def smaller(self, kind: str) -> Path:
        """Return our graph in 8-bit integers or 16-bit floats."""
        path = self.folder / f"{kind}.onnx"
        if not path.exists():
            pixels = np.random.default_rng(0).integers(0, 256, (CALIBRATION, SIZE, SIZE, 3), np.uint8)
            quantize(self.file, path, kind, calibration=list(pixels))
        return path

    @cached_property
    def timm_file(self) -> Path:
        """The graph that timm's own exporter makes of the network."""
        path = self.folder / "timm.onnx"
        write_by_timm(self.network, path)
        return path


def write_by_timm(network: SdResNet, path: Path) -> None:
    """Write what timm's own exporter, as its script calls it, makes of the network, batch free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants that it does not fold
        onnx_export(network, str(path), batch_size=2, input_size=(3, SIZE, SIZE), check=False)


def on_onnxruntime(setup: Setup, file: Path) -> Engine:
    """Return the engine that runs an ONNX file in onnxruntime."""
    opened = session(file, setup.device, threads=setup.threads)
    name, output = opened.get_inputs()[0].name, opened.get_outputs()[0].name
    return lambda images: run(opened, [output], {name: images})[0]


def on_openvino(setup: Setup, file: Path, batch: int) -> Engine:
    """Return the engine that runs an ONNX file in OpenVINO, compiled for one batch."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([batch, 3, SIZE, SIZE])
    # without the last it takes bfloat16 where the CPU has it
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setup.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def infer(images: Images) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = request.infer([images], share_inputs=True)[0]
        return logits

    return infer


def on_torch(setup: Setup, layout: torch.memory_format = torch.contiguous_format, *, compiled: bool = False) -> Engine:
    """Return the engine that runs the network in PyTorch."""
    device, network = setup.torch_device, deepcopy(setup.network)
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    if compiled:
        torch.compiler.reset()  # it gives up after a few shapes of the same code
    module: nn.Module = torch.compile(network, dynamic=False) if compiled else network  # type: ignore[assignment]

    def infer(images: Images) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = (
                module(torch.from_numpy(images).to(device, memory_format=layout)).cpu().numpy()
            )
        return logits

    return infer


# name: makes the engine for a batch
ENGINES: dict[str, Callable[[Setup, int], Engine]] = {
    "sdzoo": lambda setup, batch: on_onnxruntime(setup, setup.file),
    "sdzoo int8": lambda setup, batch: on_onnxruntime(setup, setup.smaller("int8")),
    "sdzoo fp16": lambda setup, batch: on_onnxruntime(setup, setup.smaller("fp16")),
    "timm export": lambda setup, batch: on_onnxruntime(setup, setup.timm_file),
    "torch": lambda setup, batch: on_torch(setup),
    "torch channels_last": lambda setup, batch: on_torch(setup, torch.channels_last),
    "torch.compile": lambda setup, batch: on_torch(setup, compiled=True),
    "OpenVINO": lambda setup, batch: on_openvino(setup, setup.file, batch),
    "OpenVINO int8": lambda setup, batch: on_openvino(setup, setup.smaller("int8"), batch),
}
OURS = "sdzoo"
ON_CPU = ("sdzoo int8", "OpenVINO", "OpenVINO int8")
ON_GPU = ("sdzoo fp16",)
ROUNDED = ("sdzoo int8", "sdzoo fp16", "OpenVINO int8")  # compute with fewer digits


def engines_on(device: str) -> list[str]:
    """Return the names of the engines that make sense on a device."""
    elsewhere = ON_CPU if on_gpu(device) else ON_GPU
    return [name for name in ENGINES if name not in elsewhere]
