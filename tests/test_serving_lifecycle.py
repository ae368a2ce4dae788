"""What a server does between its start and its end: it drains, it takes new files, it keeps strangers out."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import FASHION, network
from ports import free_port
from served import START, STOP, Server, binary_request, outputs_of, serving

from sdzoo.export import write_onnx
from sdzoo.runtime import Classifier

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not find_spec("ray"), reason="needs sdzoo[serve]")]

INFER = "/v2/models/net/infer"
IMAGES = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
INGRESSES = ["proxy", "haproxy"]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    write_onnx(network(cfg=FASHION, seed=1), path)
    return path


def logits(path: Path) -> np.ndarray:
    return Classifier(path, "cpu", threads=1).run_images(IMAGES)


@pytest.mark.parametrize("ingress", INGRESSES)
def test_what_is_under_way_is_answered_before_the_server_ends(ingress: str, model_file: Path, tmp_path: Path) -> None:
    statuses: list[int] = []
    slow = ["--max-wait-ms", 4000]  # so that requests are under way when the signal comes
    with serving(tmp_path, f"net={model_file}", "--ingress", ingress, *slow) as server:
        threads = [
            threading.Thread(target=lambda: statuses.append(server.post(INFER, *binary_request(IMAGES)).status))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        assert not statuses
    for thread in threads:
        thread.join()
    assert statuses == [200] * 5
    assert server.process.returncode == 0
    with pytest.raises(OSError):
        server.get("/v2")


class Load:
    """Clients that ask all the time, each on a connection it keeps, and what they got."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answers: list[np.ndarray] = []
        self.failures: Counter[str] = Counter()
        self._ended = threading.Event()

    def client(self) -> None:
        body, headers = binary_request(IMAGES)
        while not self._ended.is_set():
            try:
                answer = self.server.post(INFER, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.failures[repr(error)] += 1
                continue
            if answer.status == 200:
                self.answers.append(outputs_of(answer)["logits"])
            else:
                self.failures[f"{answer.status} {answer.body[:100]!r}"] += 1
            time.sleep(0.01)

    @contextmanager
    def running(self, clients: int = 4) -> Iterator["Load"]:
        threads = [threading.Thread(target=self.client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("ingress", INGRESSES)
def test_a_new_file_is_served_without_losing_a_request(ingress: str, model_file: Path, tmp_path: Path) -> None:
    old = logits(model_file)
    with serving(tmp_path, f"net={model_file}", "--ingress", ingress) as server, Load(server).running() as load:
        while len(load.answers) < 20 and not load.failures:
            time.sleep(0.1)
        write_onnx(network(cfg=FASHION, seed=2), model_file)
        new = logits(model_file)
        assert np.abs(new - old).max() > 0.1
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 240
        while not np.allclose(load.answers[-1], new, atol=1e-4) and time.monotonic() < deadline:
            time.sleep(0.2)
        count = len(load.answers)
        while len(load.answers) < count + 200 and not load.failures:
            time.sleep(0.1)
    assert not load.failures
    kinds = ["old" if np.allclose(answer, old, atol=1e-4) else "new" for answer in load.answers]
    assert all(np.allclose(a, old, atol=1e-4) or np.allclose(a, new, atol=1e-4) for a in load.answers)
    assert kinds[0] == "old" and kinds[-100:] == ["new"] * 100
    print(f"{ingress}: {len(kinds)} answered, {kinds.count('new')} of them by the new file, none lost")


def test_a_file_that_cannot_be_served_leaves_the_old_one_in_place(model_file: Path, tmp_path: Path) -> None:
    old = logits(model_file)
    with serving(tmp_path, f"net={model_file}") as server:
        model_file.write_bytes(b"no model")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while "serving the old files on:" not in server.said():
            assert time.monotonic() < deadline, server.said()
            time.sleep(0.2)
        answer = server.post(INFER, *binary_request(IMAGES))
        np.testing.assert_allclose(outputs_of(answer)["logits"], old, atol=1e-4)


def test_a_token_lets_in_who_has_it(model_file: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse\n")
    with serving(tmp_path, f"net={model_file}", "--token-file", token) as server:
        body, headers = binary_request(IMAGES)
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "correct horse"}):
            answer = server.post(INFER, body, {**headers, **wrong})
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert list(answer.json()) == ["error"] and "correct" not in answer.json()["error"]
        assert server.get("/v2/models").status == 401
        assert server.post(INFER, body, {**headers, "Authorization": "Bearer correct horse"}).status == 200
        for public in ("/", "/v2/health/live", "/v2/health/ready"):
            assert server.get(public).status == 200


def test_the_same_application_by_serve_run(model_file: Path, tmp_path: Path) -> None:
    port = free_port()
    configuration = yaml.safe_load((Path(__file__).parents[1] / "docs" / "serving" / "serve.yaml").read_text())
    configuration["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = configuration["applications"]
    application["args"] |= {"models": [f"net={model_file}"], "replicas": 1, "log_dir": str(tmp_path / "logs")}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(configuration))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "output.txt").open("w") as output:
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "serve.yaml")]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, text=True)
    server = Server(port, process, tmp_path / "output.txt")
    try:
        deadline = time.monotonic() + START
        while not answers(server):
            assert process.poll() is None and time.monotonic() < deadline, server.said()
            time.sleep(0.5)
        answer = server.post(INFER, *binary_request(IMAGES))
        np.testing.assert_allclose(outputs_of(answer)["logits"], logits(model_file), atol=1e-4)
        while not list((tmp_path / "logs").rglob("requests_*.jsonl")):  # written once a second
            assert time.monotonic() < deadline, server.said()
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(STOP)


def answers(server: Server) -> bool:
    try:
        return server.get("/v2/health/ready").status == 200
    except OSError:
        return False
