"""Image files of clients: what can be read gives the classifier's own pixels, anything else one line."""

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from networks import FASHION, network
from PIL import Image

from sdzoo.export import write_onnx
from sdzoo.runtime import Classifier
from sdzoo.samples import FASHION_MNIST
from sdzoo.serving.image import FORMATS, MAX_PIXELS, decode_image
from sdzoo.serving.protocol import ProtocolError

BAG = FASHION_MNIST / "bag" / "00018.png"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    path = tmp_path_factory.mktemp("image") / "model.onnx"
    write_onnx(network(cfg=FASHION), path, input="uint8")
    return Classifier(path, "cpu")


def photograph(width: int = 90, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def file(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares its size and has a few bytes of pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    coded = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def test_a_file_gives_the_classifiers_own_pixels(classifier: Classifier) -> None:
    pixels = decode_image(BAG.read_bytes(), classifier)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 3, 28, 28)
    np.testing.assert_array_equal(pixels, classifier.pixels([BAG]))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str, classifier: Classifier, tmp_path: Path) -> None:
    body = file(photograph(), kind)
    (tmp_path / "picture").write_bytes(body)
    np.testing.assert_array_equal(decode_image(body, classifier), classifier.pixels([tmp_path / "picture"]))


def test_a_picture_is_turned_upright(classifier: Classifier) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the camera was held upright
    upright = photograph().transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(
        decode_image(file(photograph(), "PNG", exif=turned), classifier), classifier.pixels([upright])
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the 0 bytes are not an image, must be PNG, JPEG"),
        (b"GIF", "the 3 bytes are not an image"),
        (b'{"inputs": []}', "the 14 bytes are not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "are not an image"),
        (file(photograph(), "PDF"), "are not an image"),
        (file(photograph(), "PNG")[:-2000], "are an image that cannot be read"),
        (file(photograph(), "JPEG")[:-500], "are an image that cannot be read: image file is truncated"),
        (png_header(90, 60), "are an image that cannot be read"),
        (file(photograph(), "TIFF"), "are not an image"),
        (b"P5 2 2 65535\n" + bytes(8), "pixels of mode 'I' have no range"),
    ],
)
def test_what_is_no_picture_is_refused(body: bytes, reason: str, classifier: Classifier) -> None:
    with pytest.raises(ProtocolError, match=reason) as raised:
        decode_image(body, classifier)
    assert raised.value.status == 400 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (50_000, 50_000, r"must have at most 32000000 pixels: .*2500000000"),
        (10_000, 10_000, "has 10000 x 10000 pixels, must have at most 32000000"),
        (MAX_PIXELS + 1, 1, "has 32000001 x 1 pixels, must have at most 32000000"),
    ],
)
def test_too_many_pixels_are_refused_before_any_is_decoded(
    width: int, height: int, reason: str, classifier: Classifier
) -> None:
    body = png_header(width, height)  # without the pixels: who decodes first complains of those
    assert len(body) < 2000
    with pytest.raises(ProtocolError, match=reason) as raised:
        decode_image(body, classifier)
    assert raised.value.status == 413


def test_mutated_files_are_refused_or_read(classifier: Classifier) -> None:
    generator = random.Random(0)
    files = [file(photograph(), kind) for kind in FORMATS]
    refused = 0
    for number in range(500):
        body = bytearray(files[number % len(files)])
        for _ in range(generator.randint(1, 8)):
            body[generator.randrange(min(len(body), 200))] = generator.randrange(256)
        try:
            assert decode_image(bytes(body), classifier).shape == (1, 3, 28, 28)
        except ProtocolError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 50 < refused < 450
