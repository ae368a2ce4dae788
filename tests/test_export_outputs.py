"""What a client may ask of the graph beyond logits: the best classes, a fixed batch, another operator set."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import FASHION, images, network

from sdzoo.errors import InputError
from sdzoo.export.graph import IR_VERSIONS, build, write_onnx
from sdzoo.runtime import Classifier
from sdzoo.samples import read_samples

FILES = [sample.path for sample in read_samples()[::40]]


def run(proto: onnx.ModelProto, x: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {"images": x})


@pytest.mark.parametrize("top", [1, 3, 10])
def test_top_classes_are_the_most_probable_in_order(top: int) -> None:
    x = images(4, 32, 32)
    logits, probabilities = run(build(network(), softmax=True), x)
    names = ["logits", "top_probabilities", "top_classes"]
    same, top_probabilities, top_classes = run(build(network(), top=top), x, names)
    assert (same == logits).all()
    order = np.argsort(-logits, axis=1)[:, :top]
    assert (top_classes == order).all() and top_classes.dtype == np.int64
    assert (top_probabilities == np.take_along_axis(probabilities, order, axis=1)).all()


def test_outputs_are_those_asked_for() -> None:
    for kwargs, expected in [
        ({}, ["logits"]),
        ({"softmax": True}, ["logits", "probabilities"]),
        ({"top": 2}, ["logits", "top_probabilities", "top_classes"]),
        ({"softmax": True, "top": 2}, ["logits", "probabilities", "top_probabilities", "top_classes"]),
    ]:
        assert [output.name for output in build(network(), **kwargs).graph.output] == expected


def test_a_fixed_batch_is_the_only_one_the_graph_takes() -> None:
    x, fixed = images(6, 32, 32), build(network(), batch=3, top=2)
    dims = [[dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (*fixed.graph.input, *fixed.graph.output)]
    assert dims == [[3, 3, 32, 32], [3, 10], [3, 2], [3, 2]]
    free = run(build(network()), x[:3])[0]
    assert (run(fixed, x[:3])[0] == free).all()
    with pytest.raises(Exception, match="invalid dimensions"):
        run(fixed, x[:4])


def test_a_classifier_fills_the_fixed_batch_and_hides_it(tmp_path: Path) -> None:
    model = network(cfg=FASHION)
    write_onnx(model, tmp_path / "free.onnx")
    write_onnx(model, tmp_path / "fixed.onnx", batch=3)
    free, fixed = (Classifier(tmp_path / f"{name}.onnx", "cpu") for name in ("free", "fixed"))
    assert len(FILES) == 5
    for n in (0, 1, 3, 5):
        assert fixed.logits(FILES[:n]).shape == (n, 10)
        np.testing.assert_allclose(fixed.logits(FILES[:n]), free.logits(FILES[:n]), rtol=1e-5, atol=1e-5)


def test_every_opset_runs_and_answers_the_same() -> None:
    x = images(2, 33, 30)  # sizes that are odd at a pooling, whose rules changed in opset 19
    kwargs = {"size": (33, 30), "softmax": True, "top": 3}
    expected = run(build(network(), **kwargs), x)
    assert list(IR_VERSIONS) == list(range(17, max(IR_VERSIONS) + 1))
    for opset in IR_VERSIONS:
        proto = build(network(), opset=opset, **kwargs)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
        assert all((ours == theirs).all() for ours, theirs in zip(run(proto, x), expected, strict=True)), opset


def test_ir_versions_are_those_of_the_opsets() -> None:
    known = [opset for opset in IR_VERSIONS if opset <= onnx.defs.onnx_opset_version()]
    assert known
    for opset in known:
        assert IR_VERSIONS[opset] == onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"top": 11}, "top is 11.* 10"),
        ({"top": -1}, "top is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"opset": 16}, "opset is 16, must be from 17 to"),
    ],
)
def test_arguments_are_checked(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(network(), **kwargs)
