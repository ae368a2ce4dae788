"""Write the sample images again: ``python -m sdzoo.samples.make DATA_DIR``, the folder that ``sdzoo data`` fills."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sdzoo.models.datasets import DATASETS
from sdzoo.samples import CALIBRATION, FASHION_MNIST, folder_name
from sdzoo.training.data import open_split

A_CLASS = 20
SPLITS = {"test": FASHION_MNIST, "train": CALIBRATION}


def make(data_dir: Path, split: str, target: Path) -> None:
    """Write images of each class, evenly spaced among those of the split, to ``target/<class>/<index>.png``."""
    images = open_split("sd_fashion_mnist", split, data_dir)
    for label, name in enumerate(DATASETS["fashion_mnist"].labels):
        folder = target / folder_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        indices = np.flatnonzero(images.labels == label)
        for index in indices[:: len(indices) // A_CLASS][:A_CLASS]:
            Image.fromarray(images.images[index, :, :, 0]).save(folder / f"{index:05}.png", optimize=True)


if __name__ == "__main__":
    for split, target in SPLITS.items():
        make(Path(sys.argv[1]), split, target)
