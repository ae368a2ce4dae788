"""A model repository for NVIDIA's Triton: a folder for each model, with its configuration and a folder per version.

REPO/NAME/config.pbtxt      inputs, outputs, batching, instances
REPO/NAME/labels.txt        for Triton's classification extension
REPO/NAME/1/model.onnx
"""

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto

from sdzoo.errors import InputError
from sdzoo.files import new_folder, replacing
from sdzoo.metadata import PRODUCER, Metadata

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"  # what is safe as a folder and in a URL
MAX_BATCH = 64
CONFIG, LABELS, MODEL = "config.pbtxt", "labels.txt", "model.onnx"
LABELLED = ("logits", "probabilities")  # outputs with a value for each label
TYPES = {
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.FLOAT: "TYPE_FP32",
}
# device of ``sdzoo.runtime.session``: Triton's kind of instance, and the precision of TensorRT
DEVICES = {
    "cpu": ("KIND_CPU", None),
    "cuda": ("KIND_GPU", None),
    "tensorrt": ("KIND_GPU", "FP32"),
    "tensorrt-fp16": ("KIND_GPU", "FP16"),
}
HEURISTIC = "1"  # of cuDNN's searches: the exhaustive one, the default, starts again at every new batch size


@dataclass(frozen=True)
class Deployment:
    """How Triton is to run a model.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, ``"tensorrt"`` or ``"tensorrt-fp16"``.
        instances: Copies of the model on each GPU, or on the CPU.
        threads: Threads of each copy's runs on the CPU; 0 for one a core.
        max_batch: Images of a run; None for 64, or for the batch that the graph is fixed to.
        preferred_batch: Numbers of images to wait for; by default as many as there are.
        max_wait_ms: How long to wait for them.
    """

    device: str = "cpu"
    instances: int = 1
    threads: int = 0
    max_batch: int | None = None
    preferred_batch: tuple[int, ...] = ()
    max_wait_ms: float = 0

    def check(self) -> None:
        """Raise InputError where a value is out of its range."""
        if self.device not in DEVICES:
            raise InputError(f"device is {self.device!r}, must be one of {', '.join(DEVICES)}")
        for name, value, smallest in [
            ("instances", self.instances, 1),
            ("threads", self.threads, 0),
            ("max_batch", self.batch, 1),
            ("max_wait_ms", self.max_wait_ms, 0),
        ]:
            if not smallest <= value <= 10_000:
                raise InputError(f"{name} is {value}, must be from {smallest} to 10000")
        for size in self.preferred_batch:
            if not 1 <= size <= self.batch:
                raise InputError(f"preferred_batch is {size}, must be from 1 to max_batch, {self.batch}")

    @property
    def batch(self) -> int:
        """Images of a run."""
        return MAX_BATCH if self.max_batch is None else self.max_batch


def write_repository(
    model: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: int = 1,
    deployment: Deployment | None = None,
    overwrite: bool = False,
) -> Path:
    """Put an ONNX file into a model repository, complete or not at all, and return the model's folder.

    Args:
        model: A file of sdzoo.
        repository: Triton's ``--model-repository``; made if it is missing.
        name: Of the model; by default that of its network and tag.
        version: Its version; a new one of a model with the same configuration is added to it.
        deployment: How to run it; by default on the CPU.
        overwrite: Replace the version and the configuration that are there; other versions stay.

    Raises:
        InputError: The file is not one of sdzoo's, an argument is outside its range, or the model is there already.
    """
    model, repository, deployment = Path(model), Path(repository), deployment or Deployment()
    deployment.check()
    graph, metadata = _read(model)
    name = metadata.name if name is None else name
    if not re.fullmatch(NAME, name):
        raise InputError(f"name is {name!r}, must be letters, digits, _ . - and at most 128 of them")
    if not 1 <= version < 2**31:
        raise InputError(f"version is {version}, must be from 1 to {2**31 - 1}")
    texts = {CONFIG: config(name, graph, deployment), LABELS: _labels(metadata)}
    _make(repository)
    _write(repository / name, texts, str(version), model.read_bytes(), overwrite)
    return repository / name


def config(name: str, graph: onnx.GraphProto, deployment: Deployment) -> str:
    """Return the model's configuration as Triton's protobuf text.

    Raises:
        InputError: The graph takes one batch only, and the deployment asks for another.
    """
    kind, precision = DEVICES[deployment.device]
    fixed = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if fixed and (deployment.max_batch not in (None, fixed) or deployment.preferred_batch):
        raise InputError(f"the graph takes {fixed} images at a time: no other max_batch and no preferred_batch")
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {0 if fixed else deployment.batch}"]
    lines += [_tensor("input", value, fixed) for value in graph.input]
    lines += [_tensor("output", value, fixed) for value in graph.output]
    lines += [f"instance_group {{ kind: {kind} count: {deployment.instances} }}"]
    lines += [] if fixed else [_batching(deployment)]
    lines += [_parameter("cudnn_conv_algo_search", HEURISTIC)] if kind == "KIND_GPU" else []
    lines += [_parameter("intra_op_thread_count", str(deployment.threads))] if deployment.threads else []
    lines += [_tensorrt(precision)] if precision else []
    return "\n".join(lines) + "\n"


def _tensor(kind: str, value: ValueInfoProto, fixed: int) -> str:
    """Return an input or output; its batch is Triton's to add, unless it is fixed."""
    tensor = value.type.tensor_type
    sizes = [size.dim_value for size in tensor.shape.dim][0 if fixed else 1 :]
    labels = f' label_filename: "{LABELS}"' if value.name in LABELLED else ""
    return f'{kind} {{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: {sizes}{labels} }}'


def _batching(deployment: Deployment) -> str:
    sizes = list(deployment.preferred_batch)
    preferred = f"preferred_batch_size: {sizes} " if sizes else ""
    microseconds = round(deployment.max_wait_ms * 1000)
    return f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {microseconds} }}"


def _tensorrt(precision: str) -> str:
    option = f'name: "tensorrt" parameters {{ key: "precision_mode" value: "{precision}" }}'
    return f"optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ {option} }} }} }}"


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _read(path: Path) -> tuple[onnx.GraphProto, Metadata]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own
        raise InputError(f"{path}: not an ONNX file") from error
    if model.producer_name != PRODUCER:
        raise InputError(f"{path}: not an ONNX file written by sdzoo: its producer is {model.producer_name!r}")
    return model.graph, Metadata.decode({prop.key: prop.value for prop in model.metadata_props})


def _labels(metadata: Metadata) -> str:
    for label in metadata.labels:
        if len(label.splitlines()) != 1:
            raise InputError(f"the label {label!r} must be one line")
    return "".join(f"{label}\n" for label in metadata.labels)


def _make(repository: Path) -> None:
    try:
        repository.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {repository}: {error.strerror}") from error


def _write(folder: Path, texts: dict[str, str], version: str, model: bytes, overwrite: bool) -> None:
    place = folder / version
    for path in (folder, place):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path}: is no folder; remove it, or give another name or version")
    if not folder.exists():
        with new_folder(folder) as temporary:
            (temporary / version).mkdir()
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
            (temporary / version / MODEL).write_bytes(model)
        return
    if not overwrite:
        _check_addition(folder, texts, version)
    with ExitStack() as stack:  # every file is written before the first takes its place
        for name, text in texts.items():
            stack.enter_context(replacing(folder / name)).write_text(text, encoding="utf-8")
        target = place / MODEL if place.exists() else stack.enter_context(new_folder(place)) / MODEL
        stack.enter_context(replacing(target)).write_bytes(model)


def _check_addition(folder: Path, texts: dict[str, str], version: str) -> None:
    """Raise InputError unless a new version can come into the folder without a change to what is there."""
    if (folder / version).exists():
        raise InputError(f"{folder / version}: exists; give another version, or overwrite it")
    for name, text in texts.items():
        file = folder / name
        if not file.is_file() or file.read_bytes() != text.encode():
            raise InputError(f"{file}: is not as this version needs it; give another name, or overwrite it")
