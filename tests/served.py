"""Run ``sdzoo serve`` as a user does, in a process of its own, and talk to it over HTTP."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ports import free_port

from sdzoo.serving.ingress import PORTS

START = 240  # seconds; a loaded machine is slow to start Ray
STOP = 120

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: "subprocess.Popen[str]"
    output: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, received, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def said(self) -> str:
        return self.output.read_text()


def own_environment() -> dict[str, str]:
    """Return an environment for a server beside others: no setting of Ray's but free ports for HAProxy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return inherited | {name: str(free_port()) for name in PORTS}


@contextmanager
def serving(folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Serve until the block ends, then stop and check that the server left in order."""
    port, output = free_port(), folder / "output.txt"
    command = [sys.executable, "-c", "from sdzoo.cli import main; main()", "serve", *map(str, arguments)]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=file,
            stderr=file,
            text=True,
            env={**own_environment(), **(environment or {})},
        )
    server = Server(port, process, output)
    try:
        _await_start(server)
        yield server
    finally:
        process.terminate()
        status = process.wait(STOP)
    assert status == 0, server.said()


def _await_start(server: Server) -> None:
    deadline = time.monotonic() + START
    while f"serving on http://{server.host}" not in server.said():
        assert server.process.poll() is None, server.said()
        assert time.monotonic() < deadline, server.said()
        time.sleep(0.2)


def binary_request(images: NDArray[Any], name: str = "images", datatype: str = "FP32") -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an inference request whose tensors, and those of the answer, are bytes."""
    data = images.tobytes()
    tensor = {"name": name, "shape": list(images.shape), "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {LENGTH: str(len(head))}


def outputs_of(answer: Answer) -> dict[str, NDArray[np.float32]]:
    """Return the float outputs of an answer in JSON or in bytes."""
    length = int(answer.headers.get(LENGTH.lower(), len(answer.body)))
    outputs, rest = {}, answer.body[length:]
    for tensor in json.loads(answer.body[:length])["outputs"]:
        if "data" in tensor:
            array = np.array(tensor["data"], np.float32)
        else:
            size = tensor["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
        outputs[tensor["name"]] = array.reshape(tensor["shape"])
    return outputs
