"""The body of a request as a picture: an image file of a client, brought to what the network takes."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdzoo.errors import InputError
from sdzoo.runtime import Classifier
from sdzoo.serving.signature import ProtocolError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM")  # of Pillow's many: each decoder is open to whoever sends
MAX_PIXELS = 32_000_000  # some 200 MB while it is decoded


def decode_image(body: bytes, classifier: Classifier) -> NDArray[np.uint8]:
    """Return the pixels [1, channels, H, W] of an image file, at the classifier's size and in its colours.

    Raises:
        ProtocolError: The file is no image, is damaged, or has more than 32 million pixels (status 413), which is
            found out before any of them is decoded.
    """
    picture = _open(body)
    try:
        return classifier.pixels([picture])
    except InputError as error:
        raise ProtocolError(str(error)) from error


def _open(body: bytes) -> Image.Image:
    try:
        with Image.open(BytesIO(body), formats=FORMATS) as image:
            _check_size(*image.size)
            return ImageOps.exif_transpose(image)
    except ProtocolError:
        raise
    except Image.DecompressionBombError as error:
        raise ProtocolError(f"the picture must have at most {MAX_PIXELS} pixels: {error}", 413) from error
    except UnidentifiedImageError as error:
        raise ProtocolError(f"the {len(body)} bytes are not an image, must be {', '.join(FORMATS)}") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ProtocolError(f"the {len(body)} bytes are an image that cannot be read: {_line(error)}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ProtocolError(f"the picture has {width} x {height} pixels, must have at most {MAX_PIXELS}", 413)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
