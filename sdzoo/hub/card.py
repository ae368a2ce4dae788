"""The model card: README.md of a repository, with the metadata the Hub reads.

Nothing in it depends on the time, the machine or its user: the same weights and results give the same card.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sdzoo.hub.results import Results
from sdzoo.hub.smaller import Smaller, as_markdown
from sdzoo.models.datasets import DATASETS

PAPER = "https://arxiv.org/abs/1603.09382"
LICENSE = "apache-2.0"
# data sets of the zoo as the Hub names them
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "svhn": "ufldl-stanford/svhn",
}
# arguments of timm's script that say how weights were trained, in this order
TOLD = (
    "dataset", "epochs", "batch_size", "opt", "lr", "momentum", "weight_decay",
    "sched", "warmup_epochs", "drop_path", "smoothing", "model_ema", "seed",
)  # fmt: skip

BODY = """
# {title}

{architecture} trained with stochastic depth ([Deep Networks with Stochastic Depth]({paper})): in every training step
each residual block is open with its survival probability, from {first:.4g} for the first to p_L = {last:.4g} for the
last of {blocks}; on average {expected:.1f} are computed. In evaluation all are, each weighted with its probability.

| | |
| --- | --- |
| input | {input_size}, mean {mean}, standard deviation {std} |
| classes | {classes} |
| parameters | {parameters:,} |
| MACs for one image | {macs:,} |
| digest | `{digest}` |

## Results

{results}

## Usage

With [timm](https://github.com/huggingface/pytorch-image-models), after `pip install sdzoo`:

```python
import sdzoo  # registers the network with timm
import timm
from PIL import Image

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))
logits = model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax()])
```

With [onnxruntime](https://onnxruntime.ai) alone, on images that are scaled to [0, 1] and normalised with the mean and
standard deviation above:

```python
import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download

session = onnxruntime.InferenceSession(hf_hub_download("{repository}", "onnx/model.onnx"))
images = np.zeros((1, {shape}), dtype=np.float32)
(logits,) = session.run(["logits"], {{"images": images}})
```

From the command line:

```
sdzoo pull {repository} --onnx --output model
sdzoo classify model/onnx/model.onnx image.png
```

Every load through timm, and `sdzoo pull`, compares the digest above: damaged or exchanged weights are an error.
`sha256sum --check SHA256SUMS` checks the files themselves.

## Training

{training}

## Citation

```bibtex
@inproceedings{{huang2016deep,
  title     = {{Deep Networks with Stochastic Depth}},
  author    = {{Huang, Gao and Sun, Yu and Liu, Zhuang and Sedra, Daniel and Weinberger, Kilian Q.}},
  booktitle = {{European Conference on Computer Vision}},
  year      = {{2016}}
}}
```
"""


@dataclass(frozen=True)
class Facts:
    """What the card says of weights.

    Attributes:
        repository: NAMESPACE/NAME.
        cfg: timm's pretrained_cfg of the network.
        survival: Survival probabilities p_1..p_L.
        digest: Digest of the weights.
        parameters: Trained numbers.
        macs: Multiplications with an addition for one image.
        dataset: Key of ``DATASETS``, None for classes the zoo does not know.
        results: Top-1 on the test split, where it was measured.
        validation: Best validation epoch and its top-1 in percent, where the training folder tells.
        arguments: Arguments of timm's script.
        arguments_kept: Whether the repository has all of them in a file.
        recipe: Recipe of the package they come from, empty where there is none.
        smaller: Quantised files that are published with them.
    """

    repository: str
    cfg: dict[str, Any]
    survival: tuple[float, ...]
    digest: str
    parameters: int
    macs: int
    dataset: str | None = None
    results: Results | None = None
    validation: tuple[int, float] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    arguments_kept: bool = False
    recipe: str = ""
    smaller: Sequence[Smaller] = ()


def model_card(facts: Facts) -> ModelCard:
    """Return the card; its text is ``str(card)``, its metadata ``card.data``."""
    cfg = facts.cfg
    body = BODY.format(
        title=facts.repository.partition("/")[2],
        repository=facts.repository,
        architecture=cfg["architecture"],
        paper=PAPER,
        first=facts.survival[0],
        last=facts.survival[-1],
        blocks=len(facts.survival),
        expected=sum(facts.survival),
        input_size=" x ".join(map(str, cfg["input_size"])),
        shape=", ".join(map(str, cfg["input_size"])),
        mean=", ".join(map(str, cfg["mean"])),
        std=", ".join(map(str, cfg["std"])),
        classes=", ".join(cfg.get("label_names") or [str(cfg["num_classes"])]),
        parameters=facts.parameters,
        macs=facts.macs,
        digest=facts.digest,
        results=_results(facts),
        training=_training(facts),
    )
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n{body}")


def _metadata(facts: Facts) -> ModelCardData:
    whole = facts.results if facts.results and not facts.results.images else None
    evaluated = [_evaluation(whole)] if whole else None
    return ModelCardData(
        license=LICENSE,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "sdzoo", "stochastic-depth", "onnx", "arxiv:1603.09382"],
        datasets=[HUB_DATASETS[facts.dataset]] if facts.dataset else None,
        metrics=["accuracy"] if evaluated else None,
        model_name=facts.repository.partition("/")[2] if evaluated else None,
        eval_results=evaluated,
    )


def _evaluation(results: Results) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=HUB_DATASETS[results.dataset],
        dataset_name=DATASETS[results.dataset].title,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="Top-1 accuracy",
        metric_value=round(results.top1 / 100, 6),
    )


def _results(facts: Facts) -> str:
    lines = ["| split | images | top-1 error | 95 % interval |", "| --- | --- | --- | --- |"]
    if facts.results:
        score, title = facts.results.score, DATASETS[facts.results.dataset].title
        low, high = score.error_interval()
        part = f" ({facts.results.images})" if facts.results.images else ""
        lines.append(f"| {title} test{part} | {score.n:,} | {score.error:.2f} % | {low:.2f} to {high:.2f} |")
    else:
        lines.append("| test | not measured | | |")
    if facts.validation:
        epoch, top1 = facts.validation
        lines.append(f"| validation, best epoch ({epoch}) | | {100 - top1:.2f} % | |")
    if facts.smaller:
        lines += ["", as_markdown(facts.smaller)]
    return "\n".join(lines)


def _training(facts: Facts) -> str:
    told = [f"| {name} | {facts.arguments[name]} |" for name in TOLD if facts.arguments.get(name) is not None]
    said = [f"`sdzoo train {facts.recipe}` trains them again."] if facts.recipe else []
    said += ["All arguments of timm's train script are in `results/args.yaml`."] if facts.arguments_kept else []
    if not told:
        return "\n".join(said) or "The training arguments of these weights were not kept."
    return "\n".join([*said, "", "| argument | value |", "| --- | --- |", *told])
