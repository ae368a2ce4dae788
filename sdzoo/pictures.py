"""Pictures as they come: file names, PIL images, arrays."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdzoo.errors import InputError

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]

BATCH = 32


def open_picture(picture: Picture) -> Image.Image:
    """Return a picture as an upright PIL image with 8 bits a channel.

    Raises:
        InputError: The file is not an image, or the array not one of pixels.
    """
    if isinstance(picture, Image.Image):
        return _eight_bits(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.shape[2:] not in [(), (3,)]:
            raise InputError(f"pixels are {picture.dtype} {picture.shape}, must be uint8 [H, W] or [H, W, 3]")
        return Image.fromarray(picture)
    try:
        with Image.open(picture) as image:
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"{picture}: no such file") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise InputError(f"{picture}: not an image that can be read") from error
    return _eight_bits(upright)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits down; Pillow's own conversion would make everything above 255 white."""
    if image.mode in ("I", "F"):
        raise InputError(f"pixels of mode {image.mode!r} have no range; 8 and 16 bits a channel can be read")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def batched(pictures: Iterable[Picture], size: int = BATCH) -> Iterator[list[Picture]]:
    """Yield the pictures in lists of at most ``size``."""
    if isinstance(pictures, str | Image.Image) or (isinstance(pictures, np.ndarray) and pictures.ndim != 4):
        raise InputError("a single picture was given, must be a list of them or an array [N, H, W, 3]")
    iterator = iter(pictures)
    while batch := list(islice(iterator, size)):
        yield batch
