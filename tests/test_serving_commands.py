"""``sdzoo serve`` says in one line why it does not start, before anything has; the files for clusters are right."""

import os
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from commandline import sdzoo
from networks import FASHION, network
from ports import free_port

from sdzoo.export import write_onnx
from sdzoo.serving.ingress import INGRESSES, PORTS, prepare

DOCS = Path(__file__).parents[1] / "docs" / "serving"
needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="needs sdzoo[serve]")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "net.onnx"
    write_onnx(network(cfg=FASHION), path)
    return path


def refused(words: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
    sdzoo("serve", *arguments, expect=1)
    error = capsys.readouterr().err.strip()
    assert words in error and error.startswith("error:") and "\n" not in error


def test_without_ray(model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.startswith(("ray", "sdzoo.serving."))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails from here on
    refused("ray is not installed: pip install 'sdzoo[serve]'", capsys, model_file)


def test_an_unknown_ingress(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused("ingress is 'nginx', must be one of proxy, haproxy", capsys, model_file, "--ingress", "nginx")


@needs_ray
def test_what_cannot_be_served(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused("nothing.onnx: no such file", capsys, tmp_path / "nothing.onnx")
    refused("replicas is 0", capsys, model_file, "--replicas", 0)
    refused("tell them apart by NAME:VERSION=FILE", capsys, model_file, model_file)
    refused("no_token: the token cannot be read", capsys, model_file, "--token-file", tmp_path / "no_token")


def test_a_port_of_haproxy_that_is_taken(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        os.environ.update({name: str(free_port()) for name in PORTS})
        os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] = str(port)
        refused(f":{port}: ", capsys, model_file, "--ingress", "haproxy")


@needs_ray
def test_a_port_that_is_taken(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        refused(f"cannot listen on 127.0.0.1:{port}", capsys, model_file, "--port", port)
    refused("cannot listen on no.such.host.invalid:8000", capsys, model_file, "--host", "no.such.host.invalid")


@pytest.mark.parametrize("ingress", INGRESSES)
def test_haproxys_files_are_nobody_elses(ingress: str) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update({name: str(free_port()) for name in PORTS})
    prepare(ingress)
    uses_haproxy = ingress == "haproxy"
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == str(int(uses_haproxy))
    paths = [Path(value) for name, value in os.environ.items() if name.startswith("RAY_SERVE_HAPROXY") and "/" in value]
    assert bool(paths) == uses_haproxy
    for path in paths:
        folder = path if path.is_dir() else path.parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_what_the_user_has_set_stays() -> None:
    os.environ["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] = "7"
    os.environ.update({name: str(free_port()) for name in PORTS})
    prepare("haproxy")
    assert os.environ["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "7"


@needs_ray
def test_the_files_for_clusters_are_what_ray_and_the_application_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    from sdzoo.serving.settings import Settings

    service = yaml.safe_load((DOCS / "rayservice.yaml").read_text())
    configurations = [
        yaml.safe_load(service["spec"]["serveConfigV2"]),
        yaml.safe_load((DOCS / "serve.yaml").read_text()),
    ]
    for configuration in configurations:
        (application,) = ServeDeploySchema.model_validate(configuration).applications
        assert application.import_path == "sdzoo.serving:app"
        settings = Settings(**application.args)
        (workers, *_) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert settings.replicas <= workers["maxReplicas"]
