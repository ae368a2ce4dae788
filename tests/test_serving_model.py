"""A loaded file: what it offers, which requests share a run, and when it says that it is broken."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import FASHION, network
from onnx import TensorProto, helper

from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.runtime import Classifier
from sdzoo.serving.model import Model, Models
from sdzoo.serving.settings import Settings
from sdzoo.serving.signature import ProtocolError
from sdzoo.serving.sources import read_sources

SETTINGS = Settings.of(models=("unused",), max_batch=4)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def gather_file(folder: Path) -> Path:
    """Write a graph that fails where an index is out of range: rows of a table of three."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["n"])
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 2])
    table = helper.make_tensor("table", TensorProto.FLOAT, [3, 2], [0, 1, 10, 11, 20, 21])
    graph = helper.make_graph([helper.make_node("Gather", ["table", "index"], ["row"])], "g", [index], [row], [table])
    path = folder / "gather.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def load(executor: Executor, *files: str, settings: Settings = SETTINGS) -> Models:
    return Models(read_sources(files), settings, executor)


def test_names_versions_and_the_newest(tmp_path: Path, executor: Executor) -> None:
    path = gather_file(tmp_path)
    models = load(executor, f"a:10={path}", f"a:9={path}", str(path))
    assert models.find("a", None).source.version == "10"
    assert models.find("a", "9").signature.versions == ("9", "10")
    assert models.listed() == [{"name": name, "version": v} for name, v in (("a", "9"), ("a", "10"), ("gather", "1"))]
    for name, version, words in (
        ("b", None, "'b', must be one of a, gather"),
        ("a", "1", "'1' of a, must be one of 9, 10"),
    ):
        with pytest.raises(ProtocolError, match=words) as refused:
            models.find(name, version)
        assert refused.value.status == 404


def test_a_client_cannot_make_a_model_look_broken(tmp_path: Path, executor: Executor) -> None:
    model = load(executor, str(gather_file(tmp_path))).find("gather", None)

    async def steps() -> None:
        model.check_health()
        assert (await model.batcher({"index": np.array([2])})).outputs["row"].tolist() == [[20, 21]]
        for _ in range(5):
            good, bad = await asyncio.gather(
                model.batcher({"index": np.array([1])}),
                model.batcher({"index": np.array([99])}),
                return_exceptions=True,
            )
            assert good.outputs["row"].tolist() == [[10, 11]] and isinstance(bad, Exception)
        model.check_health()

    asyncio.run(steps())


def test_a_model_that_fails_at_what_it_could_do_says_so(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load(executor, str(gather_file(tmp_path)))
    model = models.find("gather", None)
    asyncio.run(model.batcher({"index": np.array([1])}))

    def lost(*_: object) -> None:
        raise RuntimeError("the GPU is lost")

    monkeypatch.setattr("sdzoo.serving.model.run", lost)
    with pytest.raises(RuntimeError):
        asyncio.run(model.batcher({"index": np.array([1])}))
    with pytest.raises(RuntimeError, match="GPU is lost"):
        models.check_health()
    monkeypatch.undo()
    models.check_health()


@pytest.mark.parametrize("batch", [None, 3])
def test_requests_share_a_run_only_where_the_batch_is_free(
    batch: int | None, tmp_path: Path, executor: Executor
) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(network(cfg=FASHION), path, batch=batch)
    model: Model = load(executor, f"net={path}").find("net", None)
    assert model.batcher.max_batch == (1 if batch else 4)
    images = np.random.default_rng(0).normal(size=(3, 3, 28, 28)).astype(np.float32)
    answer = asyncio.run(model.batcher({"images": images}))
    np.testing.assert_allclose(
        answer.outputs["logits"], Classifier(path, "cpu").run_images(images), rtol=1e-5, atol=1e-5
    )


def test_a_device_that_is_not_here_is_refused(tmp_path: Path, executor: Executor) -> None:
    settings = Settings.of(models=("unused",), device="gpu")
    with pytest.raises(InputError, match="device is 'gpu'"):
        load(executor, str(gather_file(tmp_path)), settings=settings)
