"""The wheel: built, installed outside the checkout, and used from there."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import sdzoo

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, CHECKOUT]
    ran = subprocess.run(build, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"sdzoo", f"sdzoo-{sdzoo.__version__}.dist-info"}
    assert "sdzoo/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    for ending in (".py", ".yaml", ".png", ".safetensors", "/page.html"):
        assert any(name.endswith(ending) for name in names), ending
    assert wheel.stat().st_size < 25e6


def test_installed_wheel_exports_and_verifies(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    program = "import sdzoo; from sdzoo.cli import main; print(sdzoo.__file__); main(['export'])"
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(site))
    assert (tmp_path / "sd_resnet110.onnx").stat().st_size > 6e6


def test_version_is_the_changelogs_newest() -> None:
    newest = next(line for line in (CHECKOUT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest.split()[1] == sdzoo.__version__


def test_extras_of_the_runtimes_are_declared_exclusive() -> None:
    runtimes = {line.split(";")[1].strip(): line for line in requires("sdzoo") or [] if line.startswith("onnxruntime")}
    assert runtimes["extra == 'cpu'"].startswith("onnxruntime>")
    assert runtimes["extra == 'gpu'"].startswith("onnxruntime-gpu>")
    assert runtimes["extra == 'openvino'"].startswith("onnxruntime-openvino>")
    conflicts = 'conflicts = [[{ extra = "cpu" }, { extra = "gpu" }, { extra = "openvino" }]]'
    assert conflicts in (CHECKOUT / "pyproject.toml").read_text()
