"""Verification: an ONNX file answers as the PyTorch network does, on real images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sdzoo.errors import InputError
from sdzoo.export.adapted import metadata_of
from sdzoo.metadata import Metadata
from sdzoo.models.sd_resnet import SdResNet
from sdzoo.models.skip import SkippingNetwork
from sdzoo.pictures import batched
from sdzoo.runtime import Classifier
from sdzoo.samples import Sample, class_indices

# Of two logits, relative to the largest logit: both sides round to float32 (6e-8 relative) in another order.
TOLERANCE = 2e-5

FROM_NETWORK = ("model", "labels", "mean", "std", "p_L", "schedule")  # what of the metadata the weights decide

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Logits [N, classes] of both sides for the same images, and the right classes [N] where they are known."""

    onnx: Float32
    torch: Float32
    targets: NDArray[np.int64] | None

    @property
    def difference(self) -> float:
        """Largest difference between two logits."""
        return float(np.abs(self.onnx - self.torch).max())

    @property
    def share(self) -> float:
        """The same, as a share of PyTorch's largest logit where one is not 0."""
        largest = float(np.abs(self.torch).max())
        return self.difference / largest if largest else self.difference

    @property
    def agreement(self) -> float:
        """Share of images that both give the same class."""
        return float((self.onnx.argmax(axis=1) == self.torch.argmax(axis=1)).mean())

    def accuracy(self, logits: Float32) -> float | None:
        """Share of images that the logits classify right, None where the right classes are unknown."""
        return None if self.targets is None else float((logits.argmax(axis=1) == self.targets).mean())

    def check(self) -> None:
        """Raise InputError where the difference is beyond the tolerance, or not a number."""
        if not self.share <= TOLERANCE:
            raise InputError(
                f"onnxruntime and PyTorch differ by {self.share:.1e} of the largest logit, allowed are {TOLERANCE:.0e}"
            )


def compare(classifier: Classifier, model: SdResNet, samples: Sequence[Sample]) -> Comparison:
    """Run both on the same pixels.

    Args:
        classifier: The ONNX file.
        model: The network it was written from, in evaluation mode.
        samples: At least one image.
    """
    onnx, expected = [], []
    for batch in batched(sample.path for sample in samples):
        pixels = classifier.pixels(batch)
        onnx.append(classifier.run(pixels))
        with torch.inference_mode():
            expected.append(model(torch.from_numpy(classifier.normalised(pixels))).numpy())
    targets = class_indices(samples, classifier.metadata.labels)
    return Comparison(np.concatenate(onnx), np.concatenate(expected), None if targets is None else np.array(targets))


def check_weights(path: str | os.PathLike[str], metadata: Metadata, model: SdResNet) -> None:
    """Raise InputError unless the file was written from exactly these weights, and its metadata are the network's."""
    ours = metadata_of(model) if isinstance(model, SkippingNetwork) else Metadata.of(model)
    if ours.digest != metadata.digest:
        raise InputError(
            f"{path}: written from weights with digest {metadata.digest}, those given have {ours.digest}; "
            "give the checkpoint it was written from with --checkpoint"
        )
    for field in FROM_NETWORK:
        theirs, expected = getattr(metadata, field), getattr(ours, field)
        if theirs != expected:
            raise InputError(f"{path}: its metadata has {field} {theirs}, {ours.name} has {expected}")
