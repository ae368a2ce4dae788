"""The commands ``sdzoo export``, ``verify`` and ``classify``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from sdzoo.export.verify import Comparison
    from sdzoo.models.sd_resnet import SdResNet
    from sdzoo.runtime import Prediction

    Answer = tuple[str, Prediction, tuple[int, int] | None]  # file, prediction, width and height before resizing

DEFAULT_MODEL = "sd_resnet20"

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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt.")]


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
) -> None:
    """Fold a network into an ONNX file and verify it on real images."""
    from sdzoo.checkpoints import load_model
    from sdzoo.export.graph import write_onnx
    from sdzoo.files import replacing

    target = output or Path(f"{model}.onnx")
    with replacing(target) as temporary:
        network = load_model(model, checkpoint=checkpoint, pretrained=pretrained, drop_path=drop_path)
        write_onnx(network, temporary, size=size, input=input, softmax=softmax, top=top, batch=batch, opset=opset)
        console.print(f"{checkpoint or model}: {_facts(network)}")
        console.print("batch normalisation and survival probabilities are folded into the convolutions")
        if verify:
            _verify(temporary, network)
    console.print(f"written: {target.resolve()} ({target.stat().st_size / 1e6:.2f} MB)")


def verify(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A file that sdzoo exported.")],
    checkpoint: Checkpoint = None,
    drop_path: DropPath = None,
    images: Images = None,
) -> None:
    """Compare an ONNX file with the PyTorch network it was written from, on real images."""
    from sdzoo.checkpoints import load_model
    from sdzoo.errors import InputError
    from sdzoo.export.verify import check_weights
    from sdzoo.runtime import Classifier

    metadata = Classifier(file, "cpu").metadata
    if checkpoint is None and not metadata.tag:
        raise InputError(f"{file}: its weights are not published ones; give their file with --checkpoint")
    name = metadata.model if checkpoint else metadata.name
    network = load_model(name, checkpoint=checkpoint, drop_path=drop_path)
    check_weights(file, metadata, network)
    console.print(f"{file}: written from {checkpoint or name}, {_facts(network)}")
    _verify(file, network, images)


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


def _verify(file: Path, network: "SdResNet", images: Path | None = None) -> None:
    """Print how the file compares with the network, and fail where it is beyond the tolerance."""
    from sdzoo.export.verify import compare
    from sdzoo.runtime import Classifier
    from sdzoo.samples import FASHION_MNIST, read_samples

    samples = read_samples(images or FASHION_MNIST)
    with console.status(f"comparing onnxruntime with PyTorch on {len(samples)} images"):
        comparison = compare(Classifier(file, "cpu"), network, samples)
    console.print(_comparison_table(comparison))
    comparison.check()


def _facts(network: "SdResNet") -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    L, p_L = len(network.survival), network.survival[-1]
    return f"{parameters:,} parameters, {L} residual blocks, survival probability of the last p_L = {p_L:g}"


def _comparison_table(comparison: "Comparison") -> Table:
    from sdzoo.export.verify import TOLERANCE

    table = Table("onnxruntime against PyTorch", f"{len(comparison.onnx)} images")
    table.add_row("largest difference of two logits", f"{comparison.difference:.1e}")
    table.add_row("as a share of the largest logit", f"{comparison.share:.1e} (allowed: {TOLERANCE:.0e})")
    table.add_row("same top-1 class", f"{comparison.agreement:.1%}")
    for side, logits in [("onnxruntime", comparison.onnx), ("PyTorch", comparison.torch)]:
        accuracy = comparison.accuracy(logits)
        table.add_row(f"accuracy of {side}", "unknown (other labels)" if accuracy is None else f"{accuracy:.1%}")
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
