"""Running an ONNX file: sessions that never change the device silently, and a classifier of pictures."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdzoo.errors import InputError
from sdzoo.metadata import PRODUCER, Metadata
from sdzoo.pictures import Picture, batched, open_picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Path = str | os.PathLike[str]

# device: onnxruntime's execution providers, the first of which must run the graph, and their options
DEVICES: dict[str, dict[str, dict[str, str]]] = {
    "cpu": {"CPUExecutionProvider": {}},
    # the exhaustive search, the default, starts again at every new batch size
    "cuda": {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC"}},
    "tensorrt": {"TensorrtExecutionProvider": {}, "CUDAExecutionProvider": {}},
}
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
ERRORS_ONLY = 3  # onnxruntime's log severity
MODES = {1: "L", 3: "RGB"}  # channels of the network: Pillow's mode

log = logging.getLogger(__name__)


def session(path: Path, device: str = "auto") -> "InferenceSession":
    """Open an ONNX file on the device asked for, and on no other.

    Args:
        path: The file.
        device: ``"cpu"``, ``"cuda"``, ``"tensorrt"``, or ``"auto"``: CUDA where it works, else the CPU; which of
            them is logged.

    Raises:
        InputError: The device is unknown or does not work here, the file cannot be run, or onnxruntime is missing
            or installed twice.
    """
    if device not in ("auto", *DEVICES):
        raise InputError(f"device is {device!r}, must be one of auto, {', '.join(DEVICES)}")
    opened = _open_best(path) if device == "auto" else _open(path, device)
    log.info("%s runs on %s", path, opened.get_providers()[0])
    return opened


def _open_best(path: Path) -> "InferenceSession":
    if set(DEVICES["cuda"]) <= set(_onnxruntime().get_available_providers()):
        try:
            return _open(path, "cuda")
        except InputError as error:
            log.warning("%s; taking the CPU", error)
    return _open(path, "cpu")


def _open(path: Path, device: str) -> "InferenceSession":
    onnxruntime = _onnxruntime()
    providers = DEVICES[device]
    for provider in providers:
        if provider not in onnxruntime.get_available_providers():
            raise InputError(f"device {device!r}: the installed onnxruntime has no {provider}")
    if device != "cpu":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
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


def _onnxruntime() -> Any:
    if all(map(_is_installed, PACKAGES)):
        raise InputError(
            f"{' and '.join(PACKAGES)} are both installed and overwrite each other's files: uninstall both, "
            "then install sdzoo[cpu] or sdzoo[gpu]"
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


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: probabilities of all labels, the largest first."""

    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The most probable label."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.probabilities[self.label]


class Classifier:
    """Classifies pictures with an ONNX file of sdzoo, prepared as the metadata in the file says.

    Pictures are file names, PIL images, or uint8 arrays [H, W] or [H, W, 3]. One of another size than the graph's is
    cut to its aspect ratio around the centre and resized. May be used from several threads at once.

    Args:
        path: The file.
        device: See ``session``.

    Attributes:
        metadata: Model, labels, mean, std and more.
        size: H and W of the graph.
        batch: The number of images the graph takes at a time, None for any.
        provider: The execution provider of onnxruntime that runs it.

    Raises:
        InputError: The file is not one of sdzoo's, or cannot be run (see ``session``).
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        self.session = session(path, device)
        self.metadata = _metadata(path, self.session)
        images = self.session.get_inputs()[0]
        batch, self.channels, *size = images.shape
        self.batch = batch if isinstance(batch, int) else None
        self.size: tuple[int, int] = tuple(size)
        self.raw = images.type == "tensor(uint8)"
        self.provider: str = self.session.get_providers()[0]

    def __call__(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Return one prediction for each picture."""
        labels = self.metadata.labels
        return [
            Prediction({labels[index]: float(row[index]) for index in np.argsort(-row, kind="stable")})
            for row in _softmax(self.logits(pictures))
        ]

    def logits(self, pictures: Iterable[Picture]) -> NDArray[np.float32]:
        """Return logits [N, classes] for any number of pictures."""
        batches = [self.run(self.pixels(batch)) for batch in batched(pictures)]
        empty = np.empty((0, len(self.metadata.labels)), dtype=np.float32)
        return np.concatenate([empty, *batches])

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits [N, classes] for pixels [N, channels, H, W], N at least 1."""
        batch = self.batch or len(pixels)
        parts = [self._run(self.images(pixels[first : first + batch])) for first in range(0, len(pixels), batch)]
        return np.concatenate(parts)[: len(pixels)]

    def images(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn pixels [N, channels, H, W] into what the graph takes; a fixed batch is filled up with repetitions."""
        images = pixels if self.raw else self.normalised(pixels)
        return images if self.batch in (None, len(images)) else np.resize(images, (self.batch, *images.shape[1:]))

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.session.run(["logits"], {"images": images})[0]
        return logits

    def pixels(self, pictures: Sequence[Picture]) -> NDArray[np.uint8]:
        """Bring pictures to the colours and size of the graph: [N, channels, H, W]."""
        arrays = [np.asarray(self._fitted(open_picture(picture))) for picture in pictures]
        H, W = self.size
        return np.stack(arrays).reshape(-1, H, W, self.channels).transpose(0, 3, 1, 2)

    def normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale pixels [N, channels, H, W] to [0, 1], subtract the mean and divide by the std of each channel."""
        mean, std = (
            np.array(channels, dtype=np.float32)[:, None, None] for channels in (self.metadata.mean, self.metadata.std)
        )
        scaled: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return scaled

    def fits(self, picture: Image.Image) -> bool:
        """Whether the picture has the graph's size already."""
        H, W = self.size
        return picture.size == (W, H)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        picture = picture.convert(MODES[self.channels])
        if self.fits(picture):
            return picture
        H, W = self.size
        return ImageOps.fit(picture, (W, H), Image.Resampling.BILINEAR)


def _metadata(path: Path, session: "InferenceSession") -> Metadata:
    facts = session.get_modelmeta()
    try:
        if facts.producer_name != PRODUCER:
            raise InputError(f"its producer is {facts.producer_name!r}")
        return Metadata.decode(facts.custom_metadata_map)
    except InputError as error:
        raise InputError(f"{path}: not an ONNX file written by sdzoo: {error}") from error


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
