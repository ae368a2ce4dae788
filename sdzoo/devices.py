"""Sessions of onnxruntime on the device asked for, and on no other."""

import logging
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdzoo.errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

File = str | os.PathLike[str]

Providers = dict[str, dict[str, str]]  # onnxruntime's execution providers, the first of which must run the graph

# the exhaustive search, the default, starts again at every new batch size
CUDA: Providers = {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC"}}
ENGINES = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}  # building one takes minutes
DEVICES: dict[str, Providers] = {
    "cpu": {"CPUExecutionProvider": {}},
    "openvino": {"OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"}},
    "cuda": CUDA,
    "tensorrt": {"TensorrtExecutionProvider": ENGINES, **CUDA},
    "tensorrt-fp16": {"TensorrtExecutionProvider": {**ENGINES, "trt_fp16_enable": "1"}, **CUDA},
}
# what a GPU needs to multiply float32 numbers without rounding them to the 10 bits of TF32
EXACT: Providers = {"CUDAExecutionProvider": {"use_tf32": "0"}}
ON_CPU = {"CPUExecutionProvider", "OpenVINOExecutionProvider"}
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")  # one module, of which there can be one
ERRORS_ONLY = 3  # onnxruntime's log severity

log = logging.getLogger(__name__)


def session(path: File, device: str = "auto", *, threads: int | None = None, exact: bool = False) -> "InferenceSession":
    """Open an ONNX file on the device asked for, and on no other.

    Args:
        path: The file.
        device: ``"cpu"``, ``"openvino"`` (Intel's library, on the CPU), ``"cuda"``, ``"tensorrt"``, ``"tensorrt-fp16"``
            (16-bit floats inside), or ``"auto"``: CUDA where it works, else the CPU; which of them is logged.
        threads: Threads for one run on the CPU; by default one a core.
        exact: Keep every bit of float32 with CUDA, as verification needs. TensorRT has no option for it, but obeys
            ``NVIDIA_TF32_OVERRIDE=0`` in the environment.

    Raises:
        InputError: The device is unknown or does not work here, the file is missing or cannot be run, or onnxruntime
            is missing or installed twice.
    """
    if device not in ("auto", *DEVICES):
        raise InputError(f"device is {device!r}, must be one of auto, {', '.join(DEVICES)}")
    options = _options(threads)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    opened = _open_best(path, options, exact) if device == "auto" else _open(path, device, options, exact)
    log.info("%s runs on %s", path, opened.get_providers()[0])
    return opened


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    return "CUDAExecutionProvider" in DEVICES[device]


def run(session: "InferenceSession", outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a session; on a GPU by IO binding, which copies each input and each output asked for once."""
    if session.get_providers()[0] in ON_CPU:
        results: list[NDArray[Any]] = session.run(list(outputs), dict(feed))
        return results
    return run_bound(session, outputs, feed, "cuda")


def run_bound(
    session: "InferenceSession", outputs: Sequence[str], feed: Mapping[str, NDArray[Any]], memory: str
) -> list[NDArray[Any]]:
    """Run a session whose outputs stay in its own memory, ``"cuda"`` or ``"cpu"``, until they are complete."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name in outputs:
        binding.bind_output(name, memory)
    session.run_with_iobinding(binding)
    results: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
    return results


def _options(threads: int | None) -> Any:
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    return options


def _open_best(path: File, options: Any, exact: bool) -> "InferenceSession":
    if set(DEVICES["cuda"]) <= set(_onnxruntime().get_available_providers()):
        try:
            return _open(path, "cuda", options, exact)
        except InputError as error:
            log.warning("%s; taking the CPU", error)
    return _open(path, "cpu", options, exact)


def _open(path: File, device: str, options: Any, exact: bool) -> "InferenceSession":
    onnxruntime = _onnxruntime()
    for provider in DEVICES[device]:
        if provider not in onnxruntime.get_available_providers():
            raise InputError(f"device {device!r}: the installed onnxruntime has no {provider}")
    if on_gpu(device):
        onnxruntime.preload_dlls()
    providers = _providers(path, device, options.intra_op_num_threads, exact)
    try:
        # Without enable_fallback=False onnxruntime moves to the CPU by itself, even between two runs.
        opened = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=list(providers.items()), enable_fallback=False
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise InputError(f"{path}: onnxruntime cannot run it on {device!r}: {error}") from error
    if opened.get_providers()[0] != next(iter(providers)):
        raise InputError(f"device {device!r} does not work here, onnxruntime took {opened.get_providers()[0]}")
    return opened


def _providers(path: File, device: str, threads: int, exact: bool) -> Providers:
    """Return the providers of a device with all their options."""
    providers = {
        provider: {**options, **(EXACT.get(provider, {}) if exact else {})}
        for provider, options in DEVICES[device].items()
    }
    if tensorrt := providers.get("TensorrtExecutionProvider"):
        tensorrt["trt_engine_cache_path"] = str(_engine_cache(Path(path)))
    if threads and (openvino := providers.get("OpenVINOExecutionProvider")):
        openvino["num_of_threads"] = str(threads)
    return providers


def _engine_cache(path: Path) -> Path:
    """Return a folder for this file's engines alone: onnxruntime tells them by the graph, not by its weights."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sdzoo" / "tensorrt" / sha256(path.read_bytes()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _onnxruntime() -> Any:
    if len(installed := list(filter(_is_installed, PACKAGES))) > 1:
        raise InputError(
            f"{' and '.join(installed)} are both installed and overwrite each other's files: uninstall both, "
            "then install one of sdzoo[cpu], sdzoo[gpu], sdzoo[openvino]"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("onnxruntime is not installed: pip install 'sdzoo[cpu]' or 'sdzoo[gpu]'") from error
    return onnxruntime


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
