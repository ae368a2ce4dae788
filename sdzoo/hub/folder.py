"""What is published: a folder with weights, configuration, ONNX graph, results, model card and the sums of them all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models._hub import save_config_for_hf
from torch import Tensor

from sdzoo.checkpoints import load_model, read_checkpoint
from sdzoo.errors import InputError
from sdzoo.hub.card import Facts, model_card
from sdzoo.hub.catalogue import cost
from sdzoo.hub.results import Results, public_arguments, recipe_arguments, recipe_of
from sdzoo.hub.smaller import Order, Smaller, encode, write_smaller
from sdzoo.hub.sums import write_sums
from sdzoo.models.datasets import dataset_of
from sdzoo.models.digest import NOTE, digest, with_digest
from sdzoo.models.sd_resnet import SdResNet
from sdzoo.models.survival import RULES, survival_probabilities
from sdzoo.training.runs import Run
from sdzoo.weights import shipped_weights

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
GRAPH = "onnx/model.onnx"
RESULTS = "results"


@dataclass(frozen=True)
class Source:
    """Weights to publish and what is known of them.

    Attributes:
        checkpoint: File of the weights.
        name: Network, with its tag where the weights are the package's own.
        run: Training folder of timm's script, where there is one.
        results: File with the results on the test split, where there is one.
    """

    checkpoint: Path
    name: str
    run: Run | None = None
    results: Path | None = None

    @property
    def is_tag(self) -> bool:
        """Whether the weights are those that ship with the package under this name."""
        file = shipped_weights(*self.name.partition(".")[::2])
        return file is not None and file.samefile(self.checkpoint)

    def validation(self) -> tuple[int, float] | None:
        """Return epoch and validation top-1 in percent, where the weights are the best of a training folder."""
        best, checkpoint = self.run.best() if self.run else (None, None)
        return (best.number, best.top1) if best and checkpoint == self.checkpoint else None


def find_source(given: str, model: str | None = None) -> Source:
    """Find weights by what the user names: a training folder, a checkpoint, or a tag of the package.

    Args:
        given: A folder, a file, or a name such as ``sd_resnet20.fashion_mnist``.
        model: The network, where neither the file nor its name tells.

    Raises:
        InputError: It is none of them, or does not tell its network.
    """
    path = Path(given)
    if path.is_dir():
        run = Run(path)
        return Source(run.best()[1], model or str(run.arguments()["model"]), run)
    if path.is_file():
        return Source(path, model or _network_of(path), _run_of(path), _beside(path))
    file = shipped_weights(*given.partition(".")[::2])
    if file is None:
        raise InputError(f"{given}: no training folder, no checkpoint, and no weights that ship with the package")
    return Source(file, given, results=_beside(file))


def load(source: Source, *, ema: bool | None = None, drop_path: float | None = None) -> SdResNet:
    """Return the network of a source, in evaluation mode.

    Args:
        source: What ``find_source`` found.
        ema: Take the moving average of the weights (True) or the plain ones (False); a file with both wants a choice.
        drop_path: 1 - p_L, where the weights carry no schedule.

    Raises:
        InputError: The weights cannot be used, or the choice does not fit them.
    """
    if source.is_tag:
        return load_model(source.name, drop_path=drop_path)
    model = load_model(source.name, checkpoint=source.checkpoint, drop_path=drop_path)
    plain = read_checkpoint(source.checkpoint, use_ema=False).state_dict
    has_both = digest(plain) != digest(read_checkpoint(source.checkpoint, use_ema=True).state_dict)
    if has_both and ema is None:
        raise InputError(f"{source.checkpoint}: holds plain weights and their moving average; say --no-ema or --ema")
    if ema and not has_both:
        raise InputError(f"{source.checkpoint}: holds no moving average of the weights; leave --ema out")
    if has_both and not ema:
        model.load_state_dict({**model.state_dict(), **plain})
    return model


def write_folder(
    folder: Path,
    repository: str,
    source: Source,
    model: SdResNet,
    results: Results | None,
    order: Order | None = None,
) -> None:
    """Write all files of a repository into an empty folder.

    Args:
        folder: The folder.
        repository: NAMESPACE/NAME, for the card.
        source: Where the weights come from.
        model: The network, in evaluation mode.
        results: Its results on the test split, where they are known.
        order: The quantised files to add.

    Raises:
        InputError: The results are those of other weights, the ONNX graph does not answer as the network does, or a
            quantised file cannot be made or loses too much.
    """
    weights = with_digest(model.state_dict())
    if results and results.digest != digest(weights):
        raise InputError(
            f"{source.results}: results of weights with digest {results.digest}, "
            f"{source.checkpoint} has {digest(weights)}"
        )
    (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    _write_config(folder / CONFIG, model, digest(weights))
    _write_graph(folder / GRAPH, model)
    smaller = write_smaller(folder / GRAPH, order or Order())
    _write_results(folder / RESULTS, source, results, smaller)
    card = model_card(_facts(repository, source, model, weights, results, smaller))
    (folder / CARD).write_text(str(card), encoding="utf-8", newline="\n")
    write_sums(folder)


def schedule_arguments(survival: tuple[float, ...]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that give exactly these survival probabilities."""
    rate = round(1 - survival[-1], 12)
    for rule in RULES:
        if survival_probabilities(len(survival), 1 - rate, rule) == survival:
            return {"drop_path_rate": rate, "survival": rule}
    return {"drop_path_rate": rate, "survival": list(survival)}


def _write_config(path: Path, model: SdResNet, number: str) -> None:
    # timm leaves drop_path_rate out, and drops keys of its configuration that it does not know: notes survive.
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    notes = [*(cfg.get("notes") or ()), NOTE + number]
    save_config_for_hf(
        model,
        str(path),
        model_config={"label_names": cfg.get("label_names"), "pretrained_cfg": {"notes": notes}},
        model_args=schedule_arguments(model.survival),
    )


def _write_graph(path: Path, model: SdResNet) -> None:
    from sdzoo.export.graph import write_onnx
    from sdzoo.export.verify import compare
    from sdzoo.runtime import Classifier
    from sdzoo.samples import read_samples

    path.parent.mkdir()
    write_onnx(model, path)
    compare(Classifier(path, "cpu"), model, read_samples()).check()


def _write_results(folder: Path, source: Source, results: Results | None, smaller: Sequence[Smaller]) -> None:
    folder.mkdir()
    if smaller:
        (folder / "onnx.json").write_text(encode(smaller), encoding="utf-8", newline="\n")
    if results:
        noted = source.results and Results.read(source.results) == results  # with more beside it
        text = source.results.read_text(encoding="utf-8") if noted and source.results else results.encode()
        (folder / "results.json").write_text(text, encoding="utf-8", newline="\n")
    if source.run:
        (folder / "args.yaml").write_text(public_arguments(source.run.arguments()), encoding="utf-8", newline="\n")
        (folder / "summary.csv").write_bytes((source.run.folder / "summary.csv").read_bytes())


def _facts(
    repository: str,
    source: Source,
    model: SdResNet,
    weights: Mapping[str, Tensor],
    results: Results | None,
    smaller: Sequence[Smaller],
) -> Facts:
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    parameters, macs = cost(model, cfg["input_size"])
    recipe = results.recipe if results and results.recipe else ""
    arguments = source.run.arguments() if source.run else recipe_arguments(recipe)
    return Facts(
        repository=repository,
        cfg=cfg,
        survival=model.survival,
        digest=digest(weights),
        parameters=parameters,
        macs=macs,
        dataset=dataset_of(cfg.get("label_names") or ()),
        results=results,
        validation=source.validation() or (results.validation if results else None),
        arguments=arguments,
        arguments_kept=source.run is not None,
        recipe=recipe or recipe_of(arguments),
        smaller=smaller,
    )


def _network_of(path: Path) -> str:
    """Return the network that a checkpoint of timm's script names, or the name of the file."""
    arguments = read_checkpoint(path).arguments
    if name := arguments.get("model"):
        return str(name)
    config = path.with_name(CONFIG)
    if path.name == WEIGHTS and config.is_file():
        try:
            return str(json.loads(config.read_text(encoding="utf-8"))["architecture"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{config}: names no architecture ({error!r}); name it with --model") from error
    if path.stem.startswith("sd_resnet"):
        return path.stem
    raise InputError(f"{path}: does not tell its network; name it with --model")


def _run_of(path: Path) -> Run | None:
    return Run(path.parent) if (path.parent / "args.yaml").is_file() else None


def _beside(path: Path) -> Path | None:
    described = path.with_suffix(".json")
    return described if described.is_file() else None
