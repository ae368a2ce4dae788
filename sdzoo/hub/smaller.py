"""Quantised files beside the ONNX graph of a repository: made, measured, and refused where they lose too much.

Only what every machine measures alike is published: bytes and answers, no times.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sdzoo.export.quality import MAX_LOSS, Quality, images_to_calibrate, images_to_measure, measure
from sdzoo.export.quantize import KINDS, check_kind, quantize
from sdzoo.runtime import Classifier


@dataclass(frozen=True)
class Order:
    """Which quantised files are wanted.

    Attributes:
        kinds: Keys of ``sdzoo.export.quantize.KINDS``.
        calibration: Folder with training images, in place of those that ship with the package.
        data_dir: Folder with the data set, to measure on its whole test split in place of the shipped sample.
    """

    kinds: Sequence[str] = ()
    calibration: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True)
class Smaller:
    """A quantised file: its name, its size in bytes, and what it costs."""

    name: str
    size: int
    quality: Quality


def write_smaller(graph: Path, order: Order) -> list[Smaller]:
    """Write the files that are wanted beside a float32 graph, as ``model_int8.onnx``.

    Raises:
        InputError: An unknown kind, images that are missing, or a file that loses more than ``MAX_LOSS``.
    """
    for kind in order.kinds:
        check_kind(kind)
    if not order.kinds:
        return []
    float32, written = Classifier(graph, "cpu"), []
    images = images_to_measure(float32.metadata, None, order.data_dir)
    for kind in dict.fromkeys(order.kinds):
        pictures = images_to_calibrate(float32.metadata, order.calibration) if KINDS[kind].calibrated else []
        target = graph.with_name(f"{graph.stem}_{kind}{graph.suffix}")
        quantize(graph, target, kind, calibration=pictures)
        quality = measure(float32, Classifier(target, "cpu"), images)
        quality.check(kind, MAX_LOSS)
        written.append(Smaller(target.name, target.stat().st_size, quality))
    return written


def encode(smaller: Sequence[Smaller]) -> str:
    """Return what was measured as JSON."""
    return f"{json.dumps({file.name: _facts(file) for file in smaller}, indent=2)}\n"


def as_markdown(smaller: Sequence[Smaller]) -> str:
    """Return what was measured as the table of a model card."""
    quality = smaller[0].quality
    lines = [
        f"The smaller ONNX files on {quality.smaller.n:,} images, {quality.origin}:",
        "",
        "| file | MB | top-1 error | of float32 | same class |",
        "| --- | --- | --- | --- | --- |",
    ]
    for file in smaller:
        errors = [f"{score.error:.2f} %" for score in (file.quality.smaller, file.quality.float32)]
        cells = [f"`onnx/{file.name}`", f"{file.size / 1e6:.2f}", *errors, f"{file.quality.agreement:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _facts(file: Smaller) -> dict[str, object]:
    return {"bytes": file.size, **asdict(file.quality)}
