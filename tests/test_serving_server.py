"""The running server: the protocol as Triton's own client speaks it, pictures, metrics, logs, and every bad request."""

import asyncio
import io
import json
import socket
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from served import LENGTH, Server, binary_request, outputs_of, serving

from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.runtime import Classifier
from sdzoo.samples import Sample, read_samples

tritonclient = pytest.importorskip("tritonclient.http")
pytestmark = pytest.mark.skipif(not find_spec("ray"), reason="needs sdzoo[serve]")

NAME = "sd_resnet20.fashion_mnist"
INFER, CLASSIFY = f"/v2/models/{NAME}/infer", f"/v2/models/{NAME}/classify"
FIRST = f"/v2/models/{NAME}/versions/1/infer"
BODY_LIMIT = 2**20
SECONDS = 5
QUEUE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of the shipped network, the second with raw pixels and probabilities, and a graph of others."""
    folder = tmp_path_factory.mktemp("server")
    model = load_model(NAME)
    write_onnx(model, folder / "one.onnx")
    write_onnx(model, folder / "two.onnx", input="uint8", softmax=True)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("a", "b", "sum")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "add", values[:2], values[2:])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), folder / "add.onnx")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    files = [folder / "one.onnx", f"{NAME}:2={folder / 'two.onnx'}", folder / "add.onnx"]
    limits = ["--max-batch", 8, "--max-body-mb", 1, "--timeout-s", SECONDS, "--max-queue", QUEUE]
    with serving(folder, *files, *limits, "--log-dir", folder / "logs") as running:
        yield running


@pytest.fixture(scope="module")
def direct(folder: Path) -> Classifier:
    return Classifier(folder / "one.onnx", "cpu", threads=1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_samples()[::10]


@pytest.fixture(scope="module")
def pixels(direct: Classifier, samples: list[Sample]) -> NDArray[np.uint8]:
    return direct.pixels([sample.path for sample in samples])


@pytest.fixture(scope="module")
def images(direct: Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return direct.images(pixels)


def answers_well(server: Server, direct: Classifier, images: NDArray[np.float32]) -> None:
    answer = server.post(FIRST, *binary_request(images[:2]))
    np.testing.assert_allclose(outputs_of(answer)["logits"], direct.run_images(images[:2]), rtol=1e-4, atol=1e-4)


# --- the protocol


@pytest.mark.parametrize("binary", [False, True])
def test_tritons_client_gets_the_same_classes_as_onnxruntime(
    binary: bool, server: Server, direct: Classifier, images: NDArray[np.float32]
) -> None:
    expected = direct.run_images(images)
    assert len(set(expected.argmax(1))) > 5
    with tritonclient.InferenceServerClient(server.host) as client:
        for first in range(0, len(images), 5):
            batch = images[first : first + 5]
            given = tritonclient.InferInput("images", list(batch.shape), "FP32")
            given.set_data_from_numpy(batch, binary_data=binary)
            asked = tritonclient.InferRequestedOutput("logits", binary_data=binary)
            answer = client.infer(NAME, [given], outputs=[asked], model_version="1", request_id=f"r{first}")
            logits = answer.as_numpy("logits")
            np.testing.assert_allclose(logits, expected[first : first + 5], rtol=1e-4, atol=1e-4)
            assert (logits.argmax(1) == expected[first : first + 5].argmax(1)).all()
            assert answer.get_response()["id"] == f"r{first}"


def test_tritons_client_reads_health_and_metadata(server: Server) -> None:
    with tritonclient.InferenceServerClient(server.host) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready(NAME) and client.is_model_ready(NAME, "1") and client.is_model_ready("add")
        assert not client.is_model_ready("other") and not client.is_model_ready(NAME, "3")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata(NAME, "1")
        assert metadata["versions"] == ["1", "2"]
        assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 28, 28]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]


def test_the_newest_version_answers_where_none_is_asked_for(server: Server, pixels: NDArray[np.uint8]) -> None:
    answer = server.post(INFER, *binary_request(pixels[:3], datatype="UINT8"))
    assert json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])["model_version"] == "2"
    outputs = outputs_of(answer)
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
    powers = np.exp(outputs["logits"] - outputs["logits"].max(1, keepdims=True))
    np.testing.assert_allclose(outputs["probabilities"], powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_a_graph_of_others_with_two_inputs(server: Server) -> None:
    tensor = {"shape": [2, 2], "datatype": "FP32"}
    inputs = [{"name": "b", "data": [1, 2, 3, 4], **tensor}, {"name": "a", "data": [[10, 20], [30, 40]], **tensor}]
    answer = server.post("/v2/models/add/infer", json.dumps({"inputs": inputs}))
    assert outputs_of(answer)["sum"].tolist() == [[11, 22], [33, 44]]


def test_many_clients_at_once_each_get_their_own_answer(
    server: Server, direct: Classifier, images: NDArray[np.float32]
) -> None:
    expected, failures = direct.run_images(images), []

    def client(number: int) -> None:
        for step in range(10):
            place = (number * 7 + step) % len(images)
            answer = server.post(FIRST, *binary_request(images[place : place + 1]))
            if not np.allclose(outputs_of(answer)["logits"], expected[place], rtol=1e-4, atol=1e-4):
                failures.append(place)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- pictures


@pytest.mark.parametrize("version", ["1", "2"])
def test_classify_gives_the_labels_that_onnxruntime_gives(
    version: str, server: Server, direct: Classifier, samples: list[Sample]
) -> None:
    for sample in samples[::4]:
        (expected,) = direct([sample.path])
        answer = server.post(f"/v2/models/{NAME}/versions/{version}/classify", sample.path.read_bytes()).json()
        assert (answer["model_name"], answer["model_version"]) == (NAME, version)
        assert answer["label"] == expected.label
        assert list(answer["probabilities"].values()) == sorted(answer["probabilities"].values(), reverse=True)
        assert answer["probabilities"] == pytest.approx(expected.probabilities, rel=1e-3, abs=1e-5)


def test_the_page_and_the_list_of_models(server: Server) -> None:
    page = server.get("/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert b"v2/models" in page.body
    models = server.get("/v2/models").json()["models"]
    assert models == [
        {"name": NAME, "version": "1"},
        {"name": NAME, "version": "2"},
        {"name": "add", "version": "1"},
    ]


# --- what is recorded


def test_prometheus_and_the_log_see_every_request(server: Server, folder: Path, images: NDArray[np.float32]) -> None:
    assert server.post(FIRST, *binary_request(images[:3])).status == 200
    assert server.post("/v2/models/add/infer", b"{").status == 400
    deadline = time.monotonic() + 60
    last: dict[tuple[str, int], dict] = {}
    while not {(NAME, 200), ("add", 400)} <= last.keys():
        assert time.monotonic() < deadline, last
        time.sleep(0.5)  # the log is written once a second
        texts = [file.read_text() for file in (folder / "logs").rglob("requests_*.jsonl")]  # none before the first
        lines = map(json.loads, "".join(texts).splitlines())
        last = {(line["model"], line["status"]): line for line in lines}
    good, bad = last[NAME, 200], last["add", 400]
    assert (good["version"], good["batch"]) == ("1", 3) and 0 < good["ms"] < 60_000 and "error" not in good
    assert bad["batch"] == 0 and "not JSON" in bad["error"] and bad["request"] != good["request"]

    (url,) = (line.split()[-1] for line in server.said().splitlines() if line.startswith("metrics on"))
    wanted = ["ray_sdzoo_requests_total{", 'status="400"', "ray_sdzoo_latency_ms_bucket", "ray_sdzoo_batch_rows_sum"]
    while not all(word in (seen := urllib.request.urlopen(url, timeout=10).read().decode()) for word in wanted):
        assert time.monotonic() < deadline, seen  # Ray exports every few seconds
        time.sleep(1)
    assert any(NAME in line for line in seen.splitlines() if line.startswith("ray_sdzoo_requests_total"))


# --- bad requests


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **changes}


def add(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [tensor(), tensor(name="b")], **more}).encode()


def png(width: int, height: int) -> bytes:
    """Return the head of a PNG that announces such a size, and little more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


ADD = "/v2/models/add/infer"
NANS = binary_request(np.full((1, 3, 28, 28), np.nan, np.float32))
PIXELS = binary_request(np.zeros((1, 3, 28, 28), np.uint8), datatype="UINT8")

# what is wrong: path, body, headers, status, words of the reason
BAD: dict[str, tuple[str, bytes, dict[str, str], int, str]] = {
    "shape": (ADD, add(tensor(shape=[1, 3]), tensor(name="b")), {}, 400, "shape"),
    "values for the shape": (ADD, add(tensor(data=[1]), tensor(name="b")), {}, 400, "1 values"),
    "datatype": (ADD, add(tensor(datatype="INT64"), tensor(name="b")), {}, 400, "INT64"),
    "name": (ADD, add(tensor(name="c"), tensor(name="b")), {}, 400, "'c'"),
    "missing tensor": (ADD, add(tensor()), {}, 400, "'b' is missing"),
    "output": (ADD, add(outputs=[{"name": "difference"}]), {}, 400, "'difference'"),
    "unequal rows": (ADD, add(tensor(shape=[2, 2], data=[1] * 4), tensor(name="b")), {}, 400, "rows"),
    "not a number": (ADD, add(tensor(data=["1", "2"]), tensor(name="b")), {}, 400, "'1'"),
    "NaN in JSON": (ADD, add(tensor(data=[float("nan"), 2]), tensor(name="b")), {}, 400, "NaN"),
    "NaN in bytes": (FIRST, *NANS, 400, "nan"),
    "infinite answer": (ADD, add(tensor(data=[3e38, 0]), tensor(name="b", data=[3e38, 0])), {}, 400, "inf"),
    "empty batch": (ADD, add(tensor(shape=[0, 2], data=[]), tensor(name="b", shape=[0, 2], data=[])), {}, 400, "shape"),
    "batch of 10,000": (ADD, add(tensor(shape=[10_000, 2], data=[0] * 20_000), tensor(name="b")), {}, 413, "at most 8"),
    "no JSON": (ADD, b"\x89PNG", {}, 400, "not JSON"),
    "no body": (ADD, b"", {}, 400, "not JSON"),
    "JSON bomb": (ADD, b"[" * 1_000_000, {}, 413, "lists and objects"),
    "deep JSON": (ADD, b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, "depth limit"),
    "truncated bytes": (INFER, PIXELS[0][:-1], PIXELS[1], 400, "2351"),
    "header length too long": (ADD, add(), {LENGTH: "99999"}, 400, LENGTH),
    "header length too short": (ADD, add(), {LENGTH: "10"}, 400, "not JSON"),
    "header length no number": (ADD, add(), {LENGTH: "-1"}, 400, LENGTH),
    "compressed": (ADD, zlib.compress(add()), {"Content-Encoding": "deflate"}, 415, "deflate"),
    "unknown model": ("/v2/models/other/infer", add(), {}, 404, "'other'"),
    "unknown version": ("/v2/models/add/versions/2/infer", add(), {}, 404, "'2'"),
    "path as a model": ("/v2/models/..%2F..%2Fetc%2Fpasswd/infer", add(), {}, 404, "nothing under this path"),
    "dots as a model": ("/v2/models/../infer", add(), {}, 404, "'..'"),
    "file as a model": ("/v2/models/add.onnx/infer", add(), {}, 404, "'add.onnx'"),
    "not an image": (CLASSIFY, b"no image", {}, 400, "8 bytes are not an image"),
    "half an image": (CLASSIFY, png(28, 28)[:-30], {}, 400, "image"),
    "decompression bomb": (CLASSIFY, png(50_000, 50_000), {}, 413, "32000000 pixels"),
    "an image for others": ("/v2/models/add/classify", b"", {}, 400, "use infer"),
    "method": ("/v2", b"", {}, 405, "POST is not for this path"),
    "path": ("/v3", b"", {}, 404, "nothing under this path"),
}


@contextmanager
def others(server: Server, direct: Classifier, images: NDArray[np.float32]) -> Iterator[None]:
    """Send good requests all the while, and check that every one was answered, and well."""
    ended, answered, failures = threading.Event(), [], []

    def client() -> None:
        while not ended.is_set() or not answered:
            try:
                answers_well(server, direct, images)
                answered.append(1)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert answered and not failures


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_request_is_refused_in_one_line(
    wrong: str, server: Server, direct: Classifier, images: NDArray[np.float32]
) -> None:
    path, body, headers, status, words = BAD[wrong]
    with others(server, direct, images):
        answer = server.post(path, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    (reason,) = answer.json().values()
    assert list(answer.json()) == ["error"] and words in reason and "\n" not in reason and len(reason) < 400
    assert server.process.poll() is None


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused(
    chunked: bool, server: Server, direct: Classifier, images: NDArray[np.float32]
) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"0" * 2**20

    with others(server, direct, images):
        answer = server.post(ADD, parts(), {} if chunked else {"Content-Length": str(100 * 2**20)})
    assert answer.status == 413
    assert f"at most {BODY_LIMIT}" in answer.json()["error"]


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def test_a_slow_client_is_timed_out(server: Server, direct: Classifier, images: NDArray[np.float32]) -> None:
    with others(server, direct, images), connect(server) as slow:
        slow.sendall(f"POST {ADD} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b"{")
        began = time.monotonic()
        with HTTPResponse(slow) as answer:
            answer.begin()
            assert answer.status == 408 and f"took longer than {SECONDS} s" in answer.read().decode()
        assert time.monotonic() - began >= SECONDS - 1


def eight_images(images: NDArray[np.float32]) -> bytes:
    """Return the bytes of a request on a connection that ends with it."""
    body, headers = binary_request(np.repeat(images[:1], 8, axis=0))
    headers |= {"Host": "x", "Connection": "close", "Content-Length": str(len(body))}
    lines = [f"POST {FIRST} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_clients_that_hang_up(server: Server, direct: Classifier, images: NDArray[np.float32]) -> None:
    raw = eight_images(images)
    head = raw.index(b"\r\n\r\n") + 4
    with others(server, direct, images):
        for sent in (raw[:20], raw[:head], raw[: head + 100], raw):
            with connect(server) as client:
                client.sendall(sent)
    answers_well(server, direct, images)


def test_a_full_queue_answers_503_and_when_to_try_again(server: Server, images: NDArray[np.float32]) -> None:
    raw = eight_images(images)

    async def client() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        received = await reader.read()
        writer.close()
        return received

    async def clients() -> list[bytes]:
        return await asyncio.gather(*(client() for _ in range(100)))

    answers = asyncio.run(clients())
    refused = [answer for answer in answers if b" 503 " in answer[:20]]
    assert refused and len([answer for answer in answers if b" 200 " in answer[:20]]) == len(answers) - len(refused)
    for answer in refused:
        assert b"retry-after: 1" in answer.lower() and b'{"error":' in answer and b"images wait already" in answer
    assert asyncio.run(client()).startswith(b"HTTP/1.1 200")


def test_a_large_picture_is_cut_and_resized(server: Server, direct: Classifier, samples: list[Sample]) -> None:
    with Image.open(samples[0].path) as small:
        large = small.resize((560, 560))
    file = io.BytesIO()
    large.save(file, "JPEG", quality=95)
    (expected,) = direct([large])
    assert server.post(CLASSIFY, file.getvalue()).json()["label"] == expected.label
