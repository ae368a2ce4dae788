"""What the zoo knows of each data set: labels, image size, and per-channel mean and standard deviation.

The statistics are those of the training images, scaled to [0, 1]; SVHN's, as usually published, are those of its
train_32x32.mat alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a data set that travel with the weights trained on it."""

    # Differs from paper: mean and deviation are per channel, not a mean image and one deviation.

    title: str
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """The 8-bit colour nearest to the mean: padding with it is zero after normalisation (paper, section 4)."""
        # Differs from paper: zero but for the rounding, less than half a grey level.
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


CIFAR100_LABELS = tuple(
    """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905  a hundred pairs of quotes would say less
)

DATASETS = {
    "cifar10": DatasetInfo(
        title="CIFAR-10",
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetInfo(
        title="CIFAR-100",
        labels=CIFAR100_LABELS,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
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
    "svhn": DatasetInfo(
        title="SVHN",
        labels=tuple("0123456789"),
        size=32,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
}


def dataset_of(labels: Sequence[str]) -> str | None:
    """Return the key of the data set that has these labels, None where the zoo knows none."""
    return next((key for key, info in DATASETS.items() if info.labels == tuple(labels)), None)
