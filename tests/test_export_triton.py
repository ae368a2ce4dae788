"""Model repositories: their configuration against Triton's own protobuf, and what is there stays unless asked."""

import importlib.util
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
import pytest
from commandline import sdzoo
from disk import file_size_limit, unwritable
from google.protobuf import text_format
from networks import FASHION, network

from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.export.triton import Deployment, write_repository
from sdzoo.models.datasets import DATASETS

SCRIPT = Path(__file__).parents[1] / "export" / "to_triton.py"


def protobuf() -> Any:
    """tritonclient's compiled protobuf, without the rest of its package, which needs gRPC."""
    path = Path(str(files("tritonclient"))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROTO = protobuf()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "model.onnx"
    write_onnx(network(cfg=FASHION), path, input="uint8", softmax=True, top=3)
    return path


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), PROTO.ModelConfig())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def described(values: Any) -> dict[str, tuple[str, list[int], str]]:
    return {
        value.name: (PROTO.DataType.Name(value.data_type), list(value.dims), getattr(value, "label_filename", ""))
        for value in values
    }


def test_the_configuration_is_tritons_and_fits_the_graph(model: Path, tmp_path: Path) -> None:
    folder = write_repository(model, tmp_path / "repo")
    assert folder == tmp_path / "repo" / "sd_resnet20"
    assert set(contents(folder)) == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(DATASETS["fashion_mnist"].labels)
    config = parsed(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("sd_resnet20", "onnxruntime", 64)
    assert described(config.input) == {"images": ("TYPE_UINT8", [3, 28, 28], "")}
    assert described(config.output) == {
        "logits": ("TYPE_FP32", [10], "labels.txt"),
        "probabilities": ("TYPE_FP32", [10], "labels.txt"),
        "top_probabilities": ("TYPE_FP32", [3], ""),
        "top_classes": ("TYPE_INT64", [3], ""),
    }
    assert config.HasField("dynamic_batching") and not config.dynamic_batching.preferred_batch_size
    (group,) = config.instance_group
    assert (group.kind, group.count) == (PROTO.ModelInstanceGroup.KIND_CPU, 1)
    assert not config.parameters and not config.HasField("optimization")


def test_every_option_arrives(model: Path, tmp_path: Path) -> None:
    sdzoo(
        *("triton", model, tmp_path, "--name", "fashion", "--version", 7, "--device", "tensorrt-fp16"),
        *("--instances", 2, "--threads", 3, "--max-batch", 32, "--max-wait-ms", 1.5),
        *("--preferred-batch", 8, "--preferred-batch", 32),
    )
    config = parsed(tmp_path / "fashion")
    assert (tmp_path / "fashion" / "7" / "model.onnx").is_file()
    assert (config.name, config.max_batch_size) == ("fashion", 32)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    (group,) = config.instance_group
    assert (group.kind, group.count) == (PROTO.ModelInstanceGroup.KIND_GPU, 2)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"cudnn_conv_algo_search": "1", "intra_op_thread_count": "3"}


@pytest.mark.parametrize("device", ["cpu", "cuda", "tensorrt"])
def test_devices_are_kinds_of_instances(device: str, model: Path, tmp_path: Path) -> None:
    config = parsed(write_repository(model, tmp_path, deployment=Deployment(device)))
    assert PROTO.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == (
        "KIND_CPU" if device == "cpu" else "KIND_GPU"
    )
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [dict(each.parameters) for each in accelerators] == ([{"precision_mode": "FP32"}] * (device == "tensorrt"))


def test_a_fixed_batch_is_part_of_the_shapes_and_not_batched(tmp_path: Path) -> None:
    write_onnx(network(cfg=FASHION), tmp_path / "four.onnx", batch=4)
    config = parsed(write_repository(tmp_path / "four.onnx", tmp_path / "repo"))
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert described(config.input)["images"] == ("TYPE_FP32", [4, 3, 28, 28], "")
    assert described(config.output)["logits"][1] == [4, 10]
    for deployment in (Deployment(max_batch=8), Deployment(preferred_batch=(2,))):
        with pytest.raises(InputError, match="the graph takes 4 images at a time"):
            write_repository(tmp_path / "four.onnx", tmp_path / "repo", name="other", deployment=deployment)


def test_a_version_is_added_beside_the_others(model: Path, tmp_path: Path) -> None:
    folder = write_repository(model, tmp_path)
    write_onnx(network(cfg=FASHION, seed=1), tmp_path / "new.onnx", input="uint8", softmax=True, top=3)
    before = contents(folder)
    write_repository(tmp_path / "new.onnx", tmp_path, version=2)
    after = contents(folder)
    assert after.pop("2/model.onnx") == (tmp_path / "new.onnx").read_bytes()
    assert after == before


def test_what_is_there_stays_unless_it_may_be_overwritten(model: Path, tmp_path: Path) -> None:
    folder = write_repository(model, tmp_path)
    write_repository(model, tmp_path, version=2)
    before = contents(folder)
    cuda = Deployment("cuda")
    with pytest.raises(InputError, match=r"sd_resnet20/1: exists; give another version, or overwrite"):
        write_repository(model, tmp_path)
    with pytest.raises(InputError, match=r"config.pbtxt: is not as this version needs it"):
        write_repository(model, tmp_path, version=3, deployment=cuda)
    assert contents(folder) == before
    write_onnx(network(cfg=FASHION, seed=1), tmp_path / "new.onnx", input="uint8")
    for version in (1, 3):
        write_repository(tmp_path / "new.onnx", tmp_path, version=version, deployment=cuda, overwrite=True)
        assert (folder / str(version) / "model.onnx").read_bytes() == (tmp_path / "new.onnx").read_bytes()
    assert (folder / "2" / "model.onnx").read_bytes() == model.read_bytes()
    assert parsed(folder).instance_group[0].kind == PROTO.ModelInstanceGroup.KIND_GPU
    assert set(contents(folder)) == {*before, "3/model.onnx"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_half_written(overwrite: bool, model: Path, tmp_path: Path) -> None:
    folder = write_repository(model, tmp_path)
    before = contents(tmp_path)
    version = 1 if overwrite else 2
    with file_size_limit(100_000), pytest.raises(OSError, match="File too large"):
        write_repository(model, tmp_path, version=version, overwrite=overwrite)
    with file_size_limit(100_000), pytest.raises(OSError, match="File too large"):
        write_repository(model, tmp_path, name="other")
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sd_resnet20"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt", "labels.txt"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--name", "../up"], "name is '../up', must be letters, digits"),
        (["--name", ""], "name is '', must be letters"),
        (["--name", ".hidden"], "name is '.hidden', must be"),
        (["--version", 0], "version is 0, must be from 1"),
        (["--device", "gpu"], "device is 'gpu', must be one of cpu, cuda, tensorrt, tensorrt-fp16"),
        (["--instances", 0], "instances is 0, must be from 1 to 10000"),
        (["--threads", -1], "threads is -1, must be from 0"),
        (["--max-batch", 0], "max_batch is 0, must be from 1"),
        (["--max-wait-ms", -0.5], "max_wait_ms is -0.5, must be from 0"),
        (["--max-wait-ms", "nan"], "max_wait_ms is nan, must be from 0"),
        (["--preferred-batch", 65], "preferred_batch is 65, must be from 1 to max_batch, 64"),
    ],
)
def test_options_out_of_range_are_refused(
    options: list[object], reason: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sdzoo("triton", model, tmp_path / "repo", *options, expect=1)
    assert reason in capfd.readouterr().err
    assert not (tmp_path / "repo").exists()


def test_files_and_folders_that_will_not_do_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no")
    foreign = onnx.load(model)
    foreign.producer_name = "pytorch"
    onnx.save(foreign, tmp_path / "foreign.onnx")
    lines = onnx.load(model)
    (labels,) = [prop for prop in lines.metadata_props if prop.key == "labels"]
    labels.value = labels.value.replace("Bag", r"B\nag")
    onnx.save(lines, tmp_path / "lines.onnx")
    for file, reason in [
        ("missing.onnx", "no such file"),
        ("text.onnx", "not an ONNX file"),
        ("foreign.onnx", "its producer is 'pytorch'"),
        ("lines.onnx", r"the label 'B\\nag' must be one line"),
    ]:
        with pytest.raises(InputError, match=reason):
            write_repository(tmp_path / file, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    for repository in (tmp_path / "text.onnx", tmp_path / "no" / "repo"):
        with pytest.raises(InputError, match="cannot make the folder"):
            write_repository(model, repository)
    with pytest.raises(InputError, match="cannot write into the folder"):
        write_repository(model, unwritable(tmp_path))


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_are_not_followed(overwrite: bool, model: Path, tmp_path: Path) -> None:
    elsewhere = write_repository(model, tmp_path / "elsewhere")
    before = contents(elsewhere)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "sd_resnet20").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is no folder; remove it"):
        write_repository(model, tmp_path / "repo", version=2, overwrite=overwrite)
    assert contents(elsewhere) == before


def test_the_script_does_the_same(model: Path, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, SCRIPT, model, tmp_path / "repo"], capture_output=True, text=True, check=True)
    assert 'backend: "onnxruntime"' in run.stdout and "tritonserver --model-repository" in run.stdout
    assert parsed(tmp_path / "repo" / "sd_resnet20").name == "sd_resnet20"
