"""Two machines: one dies under load and every request is answered; a new one takes its place."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from served import own_environment

from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.serving.ingress import INGRESSES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not find_spec("ray"), reason="needs sdzoo[serve]")]


@pytest.mark.parametrize("ingress", INGRESSES)
def test_a_node_killed_under_load(ingress: str, tmp_path: Path) -> None:
    write_onnx(load_model("sd_resnet20.fashion_mnist"), tmp_path / "net.onnx")
    script = Path(__file__).with_name("ray_two_nodes.py")
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "net.onnx", ingress],
        capture_output=True,
        text=True,
        timeout=900,
        env=own_environment(),
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))  # Ray prints too
    print(figures)
    # Every client retried until it was answered, so the script's end says that no request was lost.
    assert figures["answered after the kill"] > 100
    assert figures["failed first tries"] < figures["answered"] / 20
    assert figures["replicas while one node was gone"] == 1
