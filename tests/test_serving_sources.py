"""What the command line says of files, names and versions, and of everything else that can be set."""

from pathlib import Path

import onnx
import pytest
from networks import FASHION, network
from onnx import TensorProto, helper

from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.serving.settings import TOKEN, Settings
from sdzoo.serving.sources import read_sources


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "file.onnx"
    write_onnx(network(cfg={**FASHION, "tag": "mine"}), path)
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negate", [x], [y])
    path = tmp_path_factory.mktemp("foreign") / "negate.onnx"
    onnx.save(helper.make_model(graph), path)
    return path


def test_a_file_alone_is_served_as_its_metadata_or_its_name_say(ours: Path, foreign: Path) -> None:
    first, second = read_sources([str(ours), str(foreign)])
    assert (first.name, first.version, first.path, first.ours) == ("sd_resnet20.mine", "1", ours, True)
    assert (second.name, second.version, second.path, second.ours) == ("negate", "1", foreign, False)


def test_names_and_versions_can_be_given(ours: Path) -> None:
    sources = read_sources([f"a={ours}", f"a:2={ours}", f"b.c_d-e:30={ours}"])
    assert [(source.name, source.version) for source in sources] == [("a", "1"), ("a", "2"), ("b.c_d-e", "30")]


def test_relative_files_are_found_from_any_folder(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ours.parent)
    assert read_sources(["file.onnx"])[0].path == ours


def test_a_file_name_with_an_equals_sign(foreign: Path, tmp_path: Path) -> None:
    path = tmp_path / "a=b.onnx"
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(InputError, match="give a name by NAME=FILE"):
        read_sources([str(path)])
    assert read_sources([f"x={path}"])[0].path == path


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".hidden", "a:0", "a:-1", "a:x", "a" * 200])
def test_names_that_cannot_stand_in_an_address(name: str, ours: Path) -> None:
    with pytest.raises(InputError, match="must be FILE, NAME=FILE or NAME:VERSION=FILE"):
        read_sources([f"{name}={ours}"])


def test_the_same_name_and_version_twice(ours: Path, foreign: Path) -> None:
    with pytest.raises(InputError, match=r"negate\.onnx are all x version 3.*NAME:VERSION=FILE"):
        read_sources([f"x:3={ours}", f"x:3={foreign}"])


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_files_that_are_not_onnx(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx"):
        read_sources([str(path)])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"max_batch": -1}, "max_batch is -1"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"max_wait_ms": -0.1}, "max_wait_ms is -0.1"),
        ({"log_level": "LOUD"}, "log_level is 'LOUD'"),
        ({"models": ()}, "models"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_settings_out_of_range_are_named(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings.of(**{"models": ("a.onnx",), **values})


def test_models_as_serve_run_passes_them_on() -> None:
    assert Settings.of(models="a.onnx,b=c.onnx").models == ("a.onnx", "b=c.onnx")


def test_gpus_ask_for_cuda_and_nothing_else_does() -> None:
    assert Settings.of(models=("a",)).provider == "cpu"
    assert Settings.of(models=("a",), gpus=0.5).provider == "cuda"
    assert Settings.of(models=("a",), gpus=1, device="tensorrt").provider == "tensorrt"


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    settings = Settings.of(models=("a",))
    assert settings.token().admits(b"")
    monkeypatch.setenv(TOKEN, "from the environment")
    assert settings.token().admits(b"Bearer from the environment")
    assert not settings.token().admits(b"")
    file = tmp_path / "token"
    file.write_text("secret\n")
    token = Settings.of(models=("a",), token_file=file).token()
    assert token.admits(b"Bearer secret")
    for wrong in (b"", b"secret", b"Bearer", b"Bearer secre", b"Bearer secret ", b"bearer secret", b"Bearer \xff"):
        assert not token.admits(wrong)


def test_a_token_file_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(InputError, match="token: the token cannot be read"):
        Settings.of(models=("a",), token_file=file).token()
    file.write_text(" \n")
    with pytest.raises(InputError, match="token: holds no token"):
        Settings.of(models=("a",), token_file=file).token()
