"""Any timm network that skips its paths, as an ONNX file: through torch's own exporter, then made ours.

The exporter's stack traces, paths and versions go; name, operator set and metadata are as in ``sdzoo.export.graph``,
so the same weights give the same bytes from every folder. With ``rule="paper"`` the p_l of every branch moves into
its last affine operation (paper, section 3, equation 5), where it has one.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto, StringStringEntryProto, helper
from torch import nn

from sdzoo.errors import InputError
from sdzoo.export.survival import fold_survival, survival_products
from sdzoo.files import replacing
from sdzoo.metadata import PRODUCER, Metadata, configuration
from sdzoo.models.digest import digest
from sdzoo.models.skip import SkippingNetwork
from sdzoo.models.skip_names import PREFIX

OPSET = 18  # the oldest that torch's exporter writes without converting
IR_VERSION = 8


@dataclass(frozen=True)
class Written:
    """What became of the survival probabilities.

    Attributes:
        folded: Number of branches whose p_l is part of their weights now.
        left: Names of the multiplications that had to stay: those branches end in nothing affine.
    """

    folded: int
    left: tuple[str, ...]


def write_adapted_onnx(
    model: nn.Module, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, softmax: bool = False
) -> Written:
    """Write a network converted by ``skip_drop_path``, as it evaluates, to an ONNX file.

    The graph maps ``images`` [batch, channels, H, W] to ``logits`` [batch, classes], float32; batch is free.

    Args:
        model: A timm network, created by ``timm.create_model`` and converted.
        path: The file; it appears complete or not at all.
        size: H and W; by default those of the network's configuration.
        softmax: Add ``probabilities`` [batch, classes] to the outputs.

    Raises:
        InputError: The network is not converted, or torch cannot export it.
    """
    metadata = metadata_of(model)
    channels, *default = configuration(model)["input_size"]  # type: ignore[arg-type]
    proto = _exported(model, (channels, *(size or default)))
    products = survival_products(proto)
    left = fold_survival(proto, products)
    _strip(proto)
    _sign(proto, metadata)
    if softmax:
        _add_softmax(proto)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    return Written(len(products) - len(left), tuple(left))


def metadata_of(model: nn.Module) -> Metadata:
    """Return the facts about a converted network that travel in its file.

    Raises:
        InputError: It is not converted, or was not created by ``timm.create_model``.
    """
    from sdzoo import __version__

    if not isinstance(model, SkippingNetwork):
        raise InputError(f"this {type(model).__name__} skips no paths: skip_drop_path(model) first")
    cfg = configuration(model)  # type: ignore[arg-type]
    classes: int = model.num_classes  # type: ignore[assignment]
    names = cfg.get("label_names") or ()
    return Metadata(
        model=PREFIX + cfg["architecture"],
        tag=cfg.get("tag") or "",
        labels=tuple(names) if len(names) == classes else tuple(map(str, range(classes))),
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
        p_L=model.survival[-1],
        schedule=model.survival,
        digest=digest(model.state_dict()),
        version=__version__,
    )


def _exported(model: nn.Module, image: Sequence[int]) -> ModelProto:
    """Run torch's exporter on the evaluating network."""
    training = model.training
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (torch.zeros(2, *image),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # the exporter's own exceptions have no common base
        raise InputError(f"torch cannot export this {type(model).__name__}: {str(error).splitlines()[0]}") from error
    finally:
        model.train(training)
    assert program is not None
    return program.model_proto


def _strip(proto: ModelProto) -> None:
    """Remove what depends on where and by what the graph was exported."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for tensor in proto.graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    proto.graph.ClearField("value_info")


def _sign(proto: ModelProto, metadata: Metadata) -> None:
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = PRODUCER, metadata.version
    proto.graph.name = metadata.name
    proto.metadata_props.extend(
        StringStringEntryProto(key=key, value=value) for key, value in metadata.encode().items()
    )


def _add_softmax(proto: ModelProto) -> None:
    (logits,) = proto.graph.output
    proto.graph.node.append(helper.make_node("Softmax", [logits.name], ["probabilities"], "probabilities", axis=1))
    proto.graph.output.add().CopyFrom(logits)
    proto.graph.output[1].name = "probabilities"
