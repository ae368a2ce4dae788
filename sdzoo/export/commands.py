"""The commands ``sdzoo export``, ``verify``, ``quantize`` and ``classify``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from sdzoo.export.quality import Quality
    from sdzoo.export.verify import Comparison
    from sdzoo.models.sd_resnet import SdResNet
    from sdzoo.runtime import Prediction

    Answer = tuple[str, Prediction, tuple[int, int] | None]  # file, prediction, width and height before resizing

DEFAULT_MODEL = "sd_resnet110"

OTHER_LABELS = "accuracy unknown: the folders of these images are not named after the network's labels"

console = Console(highlight=False, markup=False, soft_wrap=True)

Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights in place of the tag's: .safetensors, or a checkpoint of timm's script.")
]
DropPath = Annotated[
    float | None, typer.Option(help="1 - p_L of the weights; needed only where they carry no schedule.")
]
Images = Annotated[
    Path | None, typer.Option(help="Folder with a folder of images for each class, in place of the shipped ones.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, openvino, cuda, tensorrt or tensorrt-fp16.")]


def export(
    model: Annotated[str, typer.Option(help="Network of the zoo, NAME or NAME.TAG.")] = DEFAULT_MODEL,
    checkpoint: Checkpoint = None,
    pretrained: Annotated[bool, typer.Option(help="Load the tag's weights, or initialise at random.")] = True,
    drop_path: DropPath = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="H W of the images.", show_default=False)] = None,
    input: Annotated[str, typer.Option(help="float32: normalised images; uint8: raw pixels.")] = "float32",
    softmax: Annotated[bool, typer.Option("--softmax", help="Also put out probabilities.")] = False,
    top: Annotated[int, typer.Option(help="Also put out so many classes, the most probable first.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Take so many images at a time.  [default: any]")] = None,
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 17 to 28.")] = 17,
    output: Annotated[Path | None, typer.Option(help="The file to write.  [default: MODEL.onnx]")] = None,
    verify: Annotated[bool, typer.Option(help="Compare with PyTorch on real images before it counts.")] = True,
    images: Images = None,
) -> None:
    """Fold a network into an ONNX file and verify it on real images."""
    from sdzoo.errors import InputError
    from sdzoo.files import replacing

    if images and not verify:
        raise InputError(f"--images {images} is to verify on; leave --no-verify out")
    target = output or Path(f"{model}.onnx")
    _check_output(target, checkpoint)
    graph = {"size": size, "input": input, "softmax": softmax, "top": top, "batch": batch, "opset": opset}
    with replacing(target) as temporary:
        network = _load(model, checkpoint=checkpoint, pretrained=pretrained, drop_path=drop_path)
        folded = _write(model, network, temporary, graph)
        console.print(f"{checkpoint or model}: {_facts(network)}")
        console.print(folded)
        if verify:
            _verify(temporary, network, images)
    console.print(f"written: {target.resolve()} ({target.stat().st_size / 1e6:.2f} MB)")


def verify(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A file that sdzoo exported.")],
    model: Annotated[str | None, typer.Option(help="NAME.TAG, where a tag named the classes of a checkpoint.")] = None,
    checkpoint: Checkpoint = None,
    drop_path: DropPath = None,
    images: Images = None,
    device: Device = "cpu",
) -> None:
    """Compare an ONNX file with the PyTorch network it was written from, on real images."""
    from sdzoo.errors import InputError
    from sdzoo.export.verify import check_weights
    from sdzoo.metadata import FLOAT32
    from sdzoo.runtime import Classifier

    metadata = Classifier(file, "cpu").metadata
    if metadata.precision != FLOAT32:
        raise InputError(f"{file}: is {metadata.precision}, not exact; `sdzoo quantize` measured what that costs")
    if checkpoint is None and not metadata.tag:
        raise InputError(f"{file}: its weights are not published ones; give their file with --checkpoint")
    name = model or (metadata.model if checkpoint else metadata.name)
    network = _load(name, checkpoint=checkpoint, drop_path=drop_path)
    check_weights(file, metadata, network)
    console.print(f"{file}: written from {checkpoint or name}, {_facts(network)}")
    _verify(file, network, images, device)


def quantize(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float32 file that sdzoo exported.")],
    kind: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder with a folder of training images for each class, for int8.")
    ] = None,
    images: Images = None,
    data_dir: Annotated[Path | None, typer.Option(help="Measure on the test set in here, all of it.")] = None,
    max_loss: Annotated[float, typer.Option(help="Points of top-1 that may be lost.")] = 0.5,
    keep: Annotated[list[str] | None, typer.Option(help="Leave this layer in float32 (may be repeated).")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write.  [default: MODEL_KIND.onnx]")] = None,
) -> None:
    """Write a smaller file and measure what it costs; it counts only where it loses no more than allowed."""
    from sdzoo.export import quality
    from sdzoo.export.quantize import KINDS, check_kind
    from sdzoo.export.quantize import quantize as write
    from sdzoo.files import replacing
    from sdzoo.hardware import processor
    from sdzoo.runtime import Classifier

    check_kind(kind)
    target = output or file.with_name(f"{file.stem}_{kind}.onnx")
    _check_output(target, file)
    float32 = Classifier(file, "cpu")
    labelled = quality.images_to_measure(float32.metadata, images, data_dir)
    pictures = quality.images_to_calibrate(float32.metadata, calibration) if KINDS[kind].calibrated else []
    with replacing(target) as temporary, console.status(f"measuring on {len(labelled.targets):,} images"):
        write(file, temporary, kind, calibration=pictures, keep=keep or [])
        smaller = Classifier(temporary, "cpu")
        measured = quality.measure(float32, smaller, labelled)
        sizes = file.stat().st_size, temporary.stat().st_size
        times = quality.times(file, temporary, labelled.pictures)
        console.print(_quality_table(kind, measured, max_loss, sizes, times))
        advice = "" if images or data_dir else " (--data-dir measures on all of it)"
        console.print(f"accuracy on {measured.origin}{advice}; time on one thread of {processor()}")
        console.print(f"in float32: {', '.join([KINDS[kind].float32, *(keep or [])])}")
        measured.check(kind, max_loss)
    console.print(f"written: {target.resolve()} ({sizes[1] / 1e6:.2f} MB)")


def classify(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A file that sdzoo exported.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files of any format and size.")],
    top: Annotated[int, typer.Option(min=1, help="Labels to show for each image.")] = 3,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the probabilities of all labels.")] = False,
) -> None:
    """Classify image files with an ONNX file."""
    from sdzoo.pictures import open_picture
    from sdzoo.runtime import Classifier

    classifier = Classifier(file, device)
    pictures = [open_picture(image) for image in images]
    predictions = classifier(pictures)
    resized = [None if classifier.fits(picture) else picture.size for picture in pictures]
    answers = list(zip(map(str, images), predictions, resized, strict=True))
    if as_json:
        print(json.dumps([_record(*answer) for answer in answers], indent=2))
    else:
        H, W = classifier.size
        console.print(f"{classifier.metadata.name} on {classifier.provider}, images of {W} x {H} pixels")
        console.print(_prediction_table(answers, top))


def _check_output(target: Path, source: Path | None) -> None:
    """Raise InputError where the file to write is the one to read."""
    from sdzoo.errors import InputError

    if source is not None and source.exists() and target.exists() and target.samefile(source):
        raise InputError(f"{target}: is the file to read; give another name with --output")


def _load(name: str, **arguments: Any) -> Any:
    """Return a network of the zoo, or one of timm's by its name ``skip_...``."""
    from sdzoo.adapted import load_adapted
    from sdzoo.checkpoints import load_model
    from sdzoo.models.skip_names import PREFIX

    return (load_adapted if name.startswith(PREFIX) else load_model)(name, **arguments)


def _write(name: str, network: Any, path: Path, graph: dict[str, Any]) -> str:
    """Write the graph, and say what became of the survival probabilities."""
    from sdzoo.errors import InputError
    from sdzoo.export.adapted import write_adapted_onnx
    from sdzoo.export.graph import write_onnx
    from sdzoo.models.skip_names import PREFIX

    if not name.startswith(PREFIX):
        write_onnx(network, path, **graph)
        return "batch normalisation and survival probabilities are folded into the convolutions"
    if graph["input"] != "float32" or graph["top"] or graph["batch"] or graph["opset"] != 17:
        raise InputError(f"{name}: --input, --top, --batch and --opset are for the networks of the zoo")
    written = write_adapted_onnx(network, path, size=graph["size"], softmax=graph["softmax"])
    stay = f"; {len(written.left)} products stay: {', '.join(written.left)}" if written.left else ""
    return f"{written.folded} survival probabilities are folded into the branches{stay}"


def _verify(file: Path, network: "SdResNet", images: Path | None = None, device: str = "cpu") -> None:
    """Print how the file compares with the network, and fail where it is beyond the tolerance."""
    from sdzoo.export.verify import compare
    from sdzoo.runtime import Classifier
    from sdzoo.samples import FASHION_MNIST, read_samples

    samples = read_samples(images or FASHION_MNIST)
    with console.status(f"comparing onnxruntime with PyTorch on {len(samples)} images"):
        comparison = compare(Classifier(file, device, exact=True), network, samples)
    console.print(_comparison_table(comparison))
    if comparison.targets is None:
        console.print(OTHER_LABELS)
    comparison.check()


def _facts(network: "SdResNet") -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    L, p_L = len(network.survival), network.survival[-1]
    return f"{parameters:,} parameters, {L} residual paths, survival probability of the last p_L = {p_L:g}"


def _comparison_table(comparison: "Comparison") -> Table:
    from sdzoo.export.verify import TOLERANCE

    table = Table("onnxruntime against PyTorch", f"{len(comparison.onnx)} images")
    table.add_row("largest difference of two logits", f"{comparison.difference:.1e}")
    table.add_row("as a share of the largest logit", f"{comparison.share:.1e} (allowed: {TOLERANCE:.0e})")
    table.add_row("same top-1 class", f"{comparison.agreement:.1%}")
    for side, logits in [("onnxruntime", comparison.onnx), ("PyTorch", comparison.torch)]:
        if (accuracy := comparison.accuracy(logits)) is not None:
            table.add_row(f"accuracy of {side}", f"{accuracy:.1%}")
    return table


def _quality_table(
    kind: str, quality: "Quality", max_loss: float, sizes: tuple[int, int], times: dict[int, float]
) -> Table:
    table = Table(f"{quality.smaller.n:,} images", "float32", kind)
    table.add_row("size in MB", *(f"{size / 1e6:.2f}" for size in sizes))
    table.add_row("top-1 accuracy", *(f"{score.top1:.2f} %" for score in (quality.float32, quality.smaller)))
    table.add_row(f"points lost (allowed: {max_loss:g})", "", f"{quality.loss:.2f}")
    table.add_row("same top-1 class", "", f"{quality.agreement:.2f} %")
    for batch, ratio in times.items():
        table.add_row(f"time at batch {batch}", "1", f"{ratio:.2f}")
    return table


def _prediction_table(answers: list["Answer"], top: int) -> Table:
    table = Table(Column("image", overflow="fold"), "label", "probability")
    for file, prediction, resized_from in answers:
        name = file
        if resized_from:
            name += " (resized from {} x {})".format(*resized_from)
        for label, probability in list(prediction.probabilities.items())[:top]:
            table.add_row(name, label, f"{probability:.1%}")
            name = ""
    return table


def _record(file: str, prediction: "Prediction", resized_from: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "file": file,
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities,
        "resized_from": resized_from,
    }
