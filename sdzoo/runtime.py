"""Running an ONNX file: a classifier of pictures."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdzoo.devices import run, session
from sdzoo.errors import InputError
from sdzoo.metadata import PRODUCER, Metadata
from sdzoo.pictures import Picture, batched, open_picture

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Classifier", "Prediction", "session"]

Path = str | os.PathLike[str]

MODES = {1: "L", 3: "RGB"}  # channels of the network: Pillow's mode
TYPES = ("tensor(float)", "tensor(uint8)")  # of the images, as onnxruntime names them


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
        threads: See ``session``.
        exact: See ``session``.

    Attributes:
        metadata: Model, labels, mean, std and more.
        size: H and W of the graph.
        batch: The number of images the graph takes at a time, None for any.
        provider: The execution provider of onnxruntime that runs it.

    Raises:
        InputError: The file is not one of sdzoo's, or cannot be run (see ``session``).
    """

    def __init__(self, path: Path, device: str = "auto", *, threads: int | None = None, exact: bool = False) -> None:
        self.session = session(path, device, threads=threads, exact=exact)
        self.metadata = _metadata(path, self.session)
        (images,) = self.session.get_inputs()
        batch, self.channels, H, W = images.shape
        self.batch = batch if isinstance(batch, int) else None
        self.size: tuple[int, int] = (H, W)
        self.raw = images.type == "tensor(uint8)"
        self.provider: str = self.session.get_providers()[0]

    def __call__(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Return one prediction for each picture."""
        return self.predictions(self.logits(pictures))

    def predictions(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """Return one prediction for each row of logits [N, classes]."""
        labels = self.metadata.labels
        return [
            Prediction({labels[index]: float(row[index]) for index in np.argsort(-row, kind="stable")})
            for row in _softmax(logits)
        ]

    def logits(self, pictures: Iterable[Picture]) -> NDArray[np.float32]:
        """Return logits [N, classes] for any number of pictures."""
        batches = [self.run(self.pixels(batch)) for batch in batched(pictures)]
        empty = np.empty((0, len(self.metadata.labels)), dtype=np.float32)
        return np.concatenate([empty, *batches])

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits [N, classes] for pixels [N, channels, H, W], N at least 1."""
        return self.run_images(pixels if self.raw else self.normalised(pixels))

    def run_images(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits [N, classes] for images [N, channels, H, W] as the graph takes them, N at least 1."""
        batch = self.batch or len(images)
        parts = [self._run(self._filled(images[first : first + batch])) for first in range(0, len(images), batch)]
        return np.concatenate(parts)[: len(images)]

    def images(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn pixels [N, channels, H, W] into what the graph takes; a fixed batch is filled up with repetitions."""
        return self._filled(pixels if self.raw else self.normalised(pixels))

    def _filled(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.batch in (None, len(images)) else np.resize(images, (self.batch, *images.shape[1:]))

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = run(self.session, ["logits"], {"images": images})
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
        metadata = Metadata.decode(facts.custom_metadata_map)
        _check_graph(session, metadata)
        return metadata
    except InputError as error:
        raise InputError(f"{path}: not an ONNX file written by sdzoo: {error}") from error


def _check_graph(session: "InferenceSession", metadata: Metadata) -> None:
    """Raise InputError unless the graph has our input and output, and the metadata are of their shapes."""
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if set(inputs) != {"images"} or not outputs.get("logits"):
        raise InputError(f"it maps {', '.join(inputs)} to {', '.join(outputs)}, must map images to logits")
    (kind, shape), classes = inputs["images"], outputs["logits"][-1:]
    if kind not in TYPES or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise InputError(f"its images are {kind} {shape}, must be float or uint8 [batch, channels, H, W]")
    if shape[1] not in MODES:
        raise InputError(f"its images have {shape[1]} channels, pictures have {' or '.join(map(str, MODES))}")
    if [len(metadata.labels)] != classes:
        raise InputError(f"its metadata has {len(metadata.labels)} labels for {classes[0]} logits")
    for name, channels in (("mean", metadata.mean), ("std", metadata.std)):
        if len(channels) != shape[1]:
            raise InputError(f"its metadata has a {name} of {len(channels)} channels, its images have {shape[1]}")


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
