"""What the zoo knows of each data set: labels, image size, and per-channel mean and standard deviation.

The statistics are those of the training images, scaled to [0, 1].
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a data set that travel with the weights trained on it."""

    title: str
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """The 8-bit colour nearest to the mean: padding with it is zero after normalisation (paper, section 4)."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


DATASETS = {
    "cifar10": DatasetInfo(
        title="CIFAR-10",
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "fashion_mnist": DatasetInfo(
        title="Fashion-MNIST",
        labels=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        size=28,
        mean=(0.2860, 0.2860, 0.2860),
        std=(0.3530, 0.3530, 0.3530),
    ),
}
