"""Write the sample images again: ``python -m sdzoo.samples.make DATA_DIR``, the folder that ``sdzoo data`` fills."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sdzoo.models.datasets import DATASETS
from sdzoo.samples import FASHION_MNIST, folder_name
from sdzoo.training.data import open_split

EVERY = 50  # of 1,000 test images a class: 20


def make(data_dir: Path, target: Path = FASHION_MNIST) -> None:
    """Write every 50th test image of each class to ``target/<class>/<index>.png``."""
    test = open_split("sd_fashion_mnist", "test", data_dir)
    for label, name in enumerate(DATASETS["fashion_mnist"].labels):
        folder = target / folder_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(test.labels == label)[::EVERY]:
            Image.fromarray(test.images[index, :, :, 0]).save(folder / f"{index:05}.png", optimize=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
