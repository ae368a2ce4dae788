"""Sessions on the device asked for and no other; pictures of every kind classified the same."""

import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
from networks import FASHION, network
from PIL import Image

from sdzoo.devices import DEVICES
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.pictures import BATCH, open_picture
from sdzoo.runtime import Classifier, session
from sdzoo.samples import FASHION_MNIST

BAG = FASHION_MNIST / "bag" / "00018.png"
BOOT = FASHION_MNIST / "ankle_boot" / "00000.png"
COLOURED = {**FASHION, "mean": (0.2, 0.3, 0.4), "std": (0.3, 0.4, 0.5)}  # so that swapped channels show


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "model.onnx"
    write_onnx(network(cfg=COLOURED), path)
    return path


@pytest.fixture(scope="module")
def classifier(model_file: Path) -> Classifier:
    return Classifier(model_file, "cpu")


def edited(path: Path, target: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(path)
    edit(proto)
    onnx.save(proto, target)
    return target


# --- sessions


def test_cpu_and_auto_say_what_they_run_on(model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert session(model_file, "cpu").get_providers() == ["CPUExecutionProvider"]
    with caplog.at_level(logging.INFO, logger="sdzoo"):
        chosen = session(model_file).get_providers()[0]
    assert f"runs on {chosen}" in caplog.text


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "openvino"])
def test_a_device_is_used_or_refused_never_replaced(device: str, model_file: Path) -> None:
    expected = next(iter(DEVICES[device]))
    try:
        opened = session(model_file, device)
    except InputError as error:
        assert device in str(error)
    else:
        assert opened.get_providers()[0] == expected


def test_an_unknown_device_is_refused(model_file: Path) -> None:
    with pytest.raises(InputError, match=r"'gpu'.*auto, cpu, openvino, cuda, tensorrt"):
        session(model_file, "gpu")


def test_onnxruntime_absent(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails from here on
    with pytest.raises(InputError, match=r"not installed: pip install 'sdzoo\[cpu\]'"):
        session(model_file)


@pytest.mark.parametrize("second", ["gpu", "openvino"])
def test_two_onnxruntime_packages(
    second: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxruntime", f"onnxruntime_{second}"):
        folder = tmp_path / f"{package}-1.30.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.30.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"onnxruntime and onnxruntime-{second} are both installed"):
        session(model_file)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_file_that_onnxruntime_cannot_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx"):
        session(path)


def test_a_truncated_file(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(model_file.read_bytes()[:500_000])
    with pytest.raises(InputError, match=r"half\.onnx"):
        Classifier(tmp_path / "half.onnx")


def test_a_file_of_another_producer(model_file: Path, tmp_path: Path) -> None:
    foreign = edited(model_file, tmp_path / "foreign.onnx", lambda proto: setattr(proto, "producer_name", "pytorch"))
    session(foreign, "cpu")
    with pytest.raises(InputError, match=r"foreign\.onnx: not an ONNX file written by sdzoo.*'pytorch'"):
        Classifier(foreign)


@pytest.mark.parametrize(("value", "message"), [(None, "'labels'"), ("[", "'labels'"), ("3", "3 for 'labels'")])
def test_a_file_with_damaged_metadata(value: str | None, message: str, model_file: Path, tmp_path: Path) -> None:
    def damage(proto: onnx.ModelProto) -> None:
        (entry,) = [entry for entry in proto.metadata_props if entry.key == "labels"]
        if value is None:
            proto.metadata_props.remove(entry)
        else:
            entry.value = value

    with pytest.raises(InputError, match=message):
        Classifier(edited(model_file, tmp_path / "damaged.onnx", damage))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", '["a", "b"]', "2 labels for 10 logits"),
        ("labels", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]", r"\(0, 1, .*\) for 'labels'"),
        ("mean", '["a", "b", "c"]', "'c'.* for 'mean'"),
        ("std", "[0.5]", "a std of 1 channels, its images have 3"),
    ],
)
def test_metadata_that_do_not_fit_the_graph(
    field: str, value: str, message: str, model_file: Path, tmp_path: Path
) -> None:
    def change(proto: onnx.ModelProto) -> None:
        (entry,) = [entry for entry in proto.metadata_props if entry.key == field]
        entry.value = value

    with pytest.raises(InputError, match=rf"changed\.onnx: .*{message}$"):
        Classifier(edited(model_file, tmp_path / "changed.onnx", change), "cpu")


def test_a_graph_with_another_input(model_file: Path, tmp_path: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].name = "pixels"
        for node in proto.graph.node:
            node.input[:] = ["pixels" if name == "images" else name for name in node.input]

    with pytest.raises(InputError, match=r"renamed\.onnx: .*it maps pixels to logits, must map images to logits$"):
        Classifier(edited(model_file, tmp_path / "renamed.onnx", rename), "cpu")


# --- pictures


def test_metadata_comes_back_as_written(classifier: Classifier) -> None:
    model = network(cfg=COLOURED)
    assert classifier.metadata.name == "sd_resnet20"
    assert classifier.metadata.labels == FASHION["label_names"]
    assert classifier.metadata.schedule == model.survival
    assert classifier.size == (28, 28)


def test_logits_are_those_of_the_reference(classifier: Classifier) -> None:
    model = network(cfg=COLOURED)
    coloured = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    normalised = (coloured / 255 - np.array(COLOURED["mean"])) / np.array(COLOURED["std"])
    expected = reference.logits(model.state_dict(), normalised.transpose(0, 3, 1, 2))
    assert np.abs(classifier.logits(coloured) - expected).max() < 2e-5 * np.abs(expected).max()


def test_files_images_and_arrays_give_the_same(classifier: Classifier) -> None:
    image = Image.open(BOOT)
    grey = np.asarray(image)
    coloured = np.repeat(grey[..., None], 3, axis=2)
    logits = classifier.logits([BOOT, str(BOOT), image, image.convert("RGB"), grey, coloured])
    assert len(logits) == 6
    assert (logits == logits[0]).all()
    assert (classifier.logits(coloured[None]) == classifier.logits([BOOT])).all()


def test_predictions_are_sorted_and_sum_to_one(classifier: Classifier) -> None:
    (prediction,) = classifier([BAG])
    (logits,) = classifier.logits([BAG]).astype(np.float64)
    values = list(prediction.probabilities.values())
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    assert prediction.label == classifier.metadata.labels[int(logits.argmax())]
    assert prediction.probability == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum())


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1])
def test_any_number_of_pictures(count: int, classifier: Classifier) -> None:
    logits = classifier.logits([BAG, BOOT] * count)
    assert logits.shape == (2 * count, 10)
    np.testing.assert_allclose(logits, np.tile(classifier.logits([BAG, BOOT]), (count, 1)), rtol=1e-4, atol=1e-5)


def test_a_raw_pixel_graph_gives_the_same(classifier: Classifier, tmp_path: Path) -> None:
    write_onnx(network(cfg=COLOURED), tmp_path / "raw.onnx", input="uint8")
    raw = Classifier(tmp_path / "raw.onnx", "cpu")
    assert raw.raw and not classifier.raw
    expected = classifier.logits([BAG, BOOT])
    assert np.abs(raw.logits([BAG, BOOT]) - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_grey_network(tmp_path: Path) -> None:
    grey = {"mean": (0.286,), "std": (0.353,), "input_size": (1, 28, 28)}
    write_onnx(network(in_chans=1, cfg=grey), tmp_path / "grey.onnx")
    pixels = Classifier(tmp_path / "grey.onnx", "cpu").pixels([BAG])
    assert (pixels[0, 0] == np.asarray(Image.open(BAG))).all()


def test_another_size_is_cut_around_the_centre_and_resized(classifier: Classifier) -> None:
    wide = np.zeros((56, 156, 3), dtype=np.uint8)
    wide[:, 46:110] = (10, 20, 30)  # the central 56 columns, and what the filter takes beside them
    assert not classifier.fits(Image.fromarray(wide))
    pixels = classifier.pixels([wide])
    assert pixels.shape == (1, 3, 28, 28)
    assert (pixels == np.array([10, 20, 30])[:, None, None]).all()


def test_sixteen_bits_transparency_and_rotation(classifier: Classifier, tmp_path: Path) -> None:
    grey = np.asarray(Image.open(BOOT))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.open(BOOT).convert("RGBA").save(tmp_path / "alpha.png")
    Image.open(BOOT).convert("P").save(tmp_path / "palette.gif")
    rotated, exif = Image.open(BOOT).rotate(90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to stand upright
    rotated.save(tmp_path / "rotated.png", exif=exif)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert (classifier.pixels([*files, BOOT]) == classifier.pixels([BOOT])).all()


def test_threads_share_a_classifier(classifier: Classifier) -> None:
    pictures = [[BAG], [BOOT]] * 8
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(classifier.logits, pictures))
    assert all((ours == classifier.logits(picture)).all() for ours, picture in zip(together, pictures, strict=True))


def bad_pictures(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "half.png").write_bytes(BAG.read_bytes()[:200])
    # A picture of 4 gigapixels in 70 bytes: Pillow's guard against such bombs.
    header = BAG.read_bytes()
    (tmp_path / "bomb.pgm").write_bytes(b"P5 65000 65000 255\n" + header[:10])
    return {
        "missing.png: no such file": tmp_path / "missing.png",
        "text.png: not an image": tmp_path / "text.png",
        "half.png: not an image": tmp_path / "half.png",
        "bomb.pgm: not an image": tmp_path / "bomb.pgm",
        f"{tmp_path.name}: not an image": tmp_path,
        "float32": np.zeros((28, 28, 3), dtype=np.float32),
        r"\(3, 28, 28\)": np.zeros((3, 28, 28), dtype=np.uint8),
        "mode 'F'": Image.fromarray(np.zeros((28, 28), dtype=np.float32)),
    }


def test_what_is_not_a_picture_is_refused_by_name(tmp_path: Path) -> None:
    cases = bad_pictures(tmp_path)
    assert cases
    for message, picture in cases.items():
        with pytest.raises(InputError, match=message):
            open_picture(picture)


@pytest.mark.parametrize("single", [str(BAG), Image.new("L", (28, 28)), np.zeros((28, 28, 3), dtype=np.uint8)])
def test_a_single_picture_in_place_of_a_list(single: Any, classifier: Classifier) -> None:
    with pytest.raises(InputError, match="single picture"):
        classifier(single)


def test_metadata_values_are_json(model_file: Path) -> None:
    facts = onnxruntime.InferenceSession(model_file).get_modelmeta().custom_metadata_map
    assert json.loads(facts["mean"]) == [0.2, 0.3, 0.4]
