"""The protocol against tritonclient's own requests and parser; every malformed request is refused with its reason."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import network
from tritonclient.http import InferenceServerClient as Client
from tritonclient.http import InferInput, InferRequestedOutput

import sdzoo
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.runtime import session
from sdzoo.serving.protocol import (
    LENGTH,
    Limits,
    Output,
    ProtocolError,
    Request,
    Signature,
    Tensor,
    decode,
    encode,
    error_body,
    model_metadata,
    server_metadata,
)

LIMITS = Limits(max_batch=8)
IMAGES = Tensor("images", "FP32", (-1, 3, 4, 4))
LOGITS, CLASSES = Tensor("logits", "FP32", (-1, 10)), Tensor("top_classes", "INT64", (-1, 3))
SIGNATURE = Signature("net", ("1", "2"), "onnxruntime_onnx", (IMAGES,), (LOGITS, CLASSES))
TWO = Signature("two", ("1",), "onnxruntime_onnx", (IMAGES, Tensor("mask", "UINT8", (-1, 2))), (LOGITS,))


def array(tensor: Tensor, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Values that a careless conversion would change: random bits for integers, all magnitudes for floats."""
    generator = np.random.default_rng(seed)
    shape = tuple(batch if size == -1 else size for size in tensor.shape)
    if tensor.dtype.kind == "f":
        spread = np.finfo(tensor.dtype).maxexp // 4
        return (generator.normal(size=shape) * 2.0 ** generator.uniform(-spread, spread, shape)).astype(tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    return generator.integers(limits.min, limits.max, shape, tensor.dtype, endpoint=True)


def triton_request(
    arrays: dict[str, np.ndarray], datatypes: dict[str, str], *, binary: bool | list[bool] = True, **more: Any
) -> tuple[bytes, str | None]:
    """What tritonclient would send: its body and its header."""
    binaries = binary if isinstance(binary, list) else [binary] * len(arrays)
    inputs = [InferInput(name, list(values.shape), datatypes[name]) for name, values in arrays.items()]
    for each, values, flag in zip(inputs, arrays.values(), binaries, strict=True):
        each.set_data_from_numpy(values, binary_data=flag)
    body, length = Client.generate_request_body(inputs, **more)
    return body, None if length is None else str(length)


def images_request(values: np.ndarray, **more: Any) -> tuple[bytes, str | None]:
    return triton_request({"images": values}, {"images": "FP32"}, **more)


# --- round trips


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "datatype", ["FP32", "UINT8", "INT64", "FP16", "FP64", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64"]
)
def test_what_tritonclient_sends_arrives_bit_for_bit(datatype: str, binary: bool) -> None:
    tensor = Tensor("x", datatype, (-1, 3, 5))
    signature = Signature("net", ("1",), "", (tensor,), (LOGITS,))
    values = array(tensor)
    body, length = triton_request({"x": values}, {"x": datatype}, binary=binary, request_id="7")
    assert (length is not None) == binary
    request = decode(body, length, signature, LIMITS)
    assert request.id == "7"
    assert request.inputs["x"].dtype == values.dtype and request.inputs["x"].shape == values.shape
    assert request.inputs["x"].tobytes() == values.tobytes()


@pytest.mark.parametrize("binaries", [[True, True], [True, False], [False, True], [False, False]])
@pytest.mark.parametrize("names", [["images", "mask"], ["mask", "images"]])
def test_several_inputs_come_in_any_order_and_form(names: list[str], binaries: list[bool]) -> None:
    tensors = {tensor.name: tensor for tensor in TWO.inputs}
    arrays = {name: array(tensors[name]) for name in names}
    body, length = triton_request(arrays, {"images": "FP32", "mask": "UINT8"}, binary=binaries)
    request = decode(body, length, TWO, LIMITS)
    assert request.inputs.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(request.inputs[name], values)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_reads_the_answer_bit_for_bit(binary: bool) -> None:
    asked = [InferRequestedOutput(name, binary_data=binary) for name in ("top_classes", "logits")]
    body, length = images_request(array(IMAGES), outputs=asked, request_id="a")
    answers = {"logits": array(LOGITS), "top_classes": array(CLASSES), "not asked": np.zeros(3)}
    content, headers = encode(SIGNATURE, "2", decode(body, length, SIGNATURE, LIMITS), answers)
    result = Client.parse_response_body(content, header_length=headers.get(LENGTH))
    assert [each["name"] for each in result.get_response()["outputs"]] == ["top_classes", "logits"]
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("net", "2")
    assert result.get_response()["id"] == "a"
    assert result.as_numpy("logits").tobytes() == answers["logits"].tobytes()
    assert result.as_numpy("top_classes").tobytes() == answers["top_classes"].tobytes()
    assert headers["Content-Type"] == ("application/octet-stream" if binary else "application/json")


def test_without_outputs_all_are_answered_in_the_form_that_the_request_asks_for() -> None:
    body, length = images_request(array(IMAGES))  # tritonclient then sets binary_data_output
    assert decode(body, length, SIGNATURE, LIMITS).outputs == (Output("logits", True), Output("top_classes", True))
    plain = changed(lambda request: request)
    assert decode(plain, None, SIGNATURE, LIMITS).outputs == (Output("logits", False), Output("top_classes", False))
    parameters = {"binary_data_output": True, "timeout": 5}
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "top_classes"}]
    mixed = changed(lambda request: request | {"parameters": parameters, "outputs": outputs})
    assert decode(mixed, None, SIGNATURE, LIMITS).outputs == (Output("logits", False), Output("top_classes", True))


def test_data_may_be_nested_as_the_shape_or_flat() -> None:
    values = array(IMAGES)
    for data in (values.tolist(), values.ravel().tolist()):
        body = input_with(shape=list(values.shape), data=data)
        assert decode(body, None, SIGNATURE, LIMITS).inputs["images"].tobytes() == values.tobytes()


def test_without_an_id_the_answer_has_none() -> None:
    request = decode(changed(lambda request: request), None, SIGNATURE, LIMITS)
    assert request.id is None
    body, _ = encode(SIGNATURE, "1", request, {"logits": array(LOGITS), "top_classes": array(CLASSES)})
    assert "id" not in json.loads(body)


def test_binary_tensors_are_read_where_they_lie() -> None:
    values = array(IMAGES, batch=8)
    body, length = images_request(values, request_id="x")
    for padding in range(4):  # the JSON may end at any byte; an array that is not aligned is copied
        head, tail = body[: int(length or 0)] + b" " * padding, body[int(length or 0) :]
        read = decode(head + tail, str(len(head)), SIGNATURE, LIMITS).inputs["images"]
        assert read.tobytes() == values.tobytes() and read.flags.aligned
        assert read.flags.owndata == bool(len(head) % 4)


def test_a_signature_comes_from_the_graph(tmp_path: Path) -> None:
    write_onnx(network(), tmp_path / "float.onnx", top=3, softmax=True)
    write_onnx(network(), tmp_path / "bytes.onnx", input="uint8", batch=4, size=(8, 12))
    signature = Signature.of(session(tmp_path / "float.onnx", "cpu"), "net", ("1", "2"))
    assert signature.versions == ("1", "2")
    assert signature.inputs == (Tensor("images", "FP32", (-1, 3, 32, 32)),)
    assert {(each.name, each.datatype, each.shape) for each in signature.outputs} == {
        ("logits", "FP32", (-1, 10)),
        ("probabilities", "FP32", (-1, 10)),
        ("top_probabilities", "FP32", (-1, 3)),
        ("top_classes", "INT64", (-1, 3)),
    }
    fixed = Signature.of(session(tmp_path / "bytes.onnx", "cpu"), "net")
    assert fixed.inputs == (Tensor("images", "UINT8", (4, 3, 8, 12)),)


def test_metadata_and_errors_are_the_protocols_json() -> None:
    server = json.loads(server_metadata())
    assert server == {"name": "sdzoo", "version": sdzoo.__version__, "extensions": ["binary_tensor_data"]}
    model = json.loads(model_metadata(SIGNATURE))
    assert model["name"] == "net" and model["versions"] == ["1", "2"] and model["platform"] == "onnxruntime_onnx"
    assert model["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]
    assert [each["name"] for each in model["outputs"]] == ["logits", "top_classes"]
    assert json.loads(error_body('a "quoted" reason')) == {"error": 'a "quoted" reason'}


def test_answers_that_json_cannot_express_are_refused_there_and_sent_in_binary() -> None:
    answers = {"logits": np.full((1, 10), np.nan, np.float32)}
    with pytest.raises(ProtocolError, match=r"output 'logits' has the value nan, must be finite"):
        encode(SIGNATURE, "1", Request(None, {}, (Output("logits", False),)), answers)
    body, headers = encode(SIGNATURE, "1", Request(None, {}, (Output("logits", True),)), answers)
    assert np.isnan(Client.parse_response_body(body, header_length=headers[LENGTH]).as_numpy("logits")).all()


# --- bad input


def plain_request() -> dict[str, Any]:
    data = array(IMAGES, batch=1).ravel().tolist()
    return {"inputs": [{"name": "images", "shape": [1, 3, 4, 4], "datatype": "FP32", "data": data}]}


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    request = plain_request()
    return json.dumps(change(request) or request).encode()


def input_with(**keys: Any) -> bytes:
    return changed(lambda request: request["inputs"][0].update(keys))


def input_without(key: str) -> bytes:
    return changed(lambda request: request["inputs"][0].pop(key) and None)


def data_with(value: object) -> bytes:
    return changed(lambda request: request["inputs"][0]["data"].__setitem__(5, value))


def refused(body: bytes, reason: str, length: str | None = None, status: int = 400, **more: Any) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(body, length, more.get("signature", SIGNATURE), more.get("limits", LIMITS))
    message = str(raised.value)
    assert reason in message and raised.value.status == status, message
    assert "\n" not in message and len(message) < 400
    assert json.loads(error_body(message)) == {"error": message}


JSON_ERRORS = {
    "not JSON": (b"images", "are not JSON in UTF-8, which has no NaN and no Infinity: unexpected character"),
    "nothing": (b"", "are not JSON"),
    "a list": (b"[1]", "the JSON is [1], must be an object"),
    "not UTF-8": (b'{"id": "\xff"}', "str is not valid UTF-8"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "are not JSON in UTF-8"),
    "NaN": (data_with(float("nan")), "which has no NaN"),
    "infinity": (data_with(float("-inf")), "which has no NaN and no Infinity"),
    "beyond a double": (
        changed(lambda _: {"x": 0}).replace(b"0", b"1" * 5000),
        "number is infinity when parsed as double",
    ),
    "deep": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth limit exceeded"),
    "id": (changed(lambda request: request | {"id": 3}), "id is 3, must be a string"),
    "parameters": (changed(lambda request: request | {"parameters": []}), "the request has parameters []"),
    "inputs": (changed(lambda request: request | {"inputs": {}}), "inputs is {}, must be a list of objects"),
    "an input": (changed(lambda request: request | {"inputs": [1]}), "inputs is [1], must be a list of objects"),
    "no inputs": (b"{}", "input 'images' is missing"),
    "an unknown input": (input_with(name="image"), "inputs has the name 'image', must be one of images"),
    "a name that is none": (input_with(name=["images"]), "inputs has the name ['images'], must be one of images"),
    "no name": (input_without("name"), "inputs has the name None"),
    "an input twice": (
        changed(lambda request: {"inputs": request["inputs"] * 2}),
        "inputs has 'images' twice, must have it once",
    ),
    "datatype": (input_with(datatype="FP64"), "input 'images' has datatype 'FP64', must be FP32"),
    "no datatype": (input_without("datatype"), "input 'images' has datatype None, must be FP32"),
    "rank": (input_with(shape=[3, 4, 4]), "has shape [3, 4, 4], must be [-1, 3, 4, 4]"),
    "size": (input_with(shape=[1, 3, 4, 5]), "has shape [1, 3, 4, 5], must be [-1, 3, 4, 4]"),
    "no shape": (input_without("shape"), "has shape None, must be"),
    "a boolean size": (input_with(shape=[True, 3, 4, 4]), "has shape [True, 3, 4, 4], must be"),
    "a float size": (input_with(shape=[1.0, 3, 4, 4]), "has shape [1.0, 3, 4, 4], must be"),
    "a negative size": (input_with(shape=[-1, 3, 4, 4]), "has shape [-1, 3, 4, 4], must be"),
    "an empty batch": (input_with(shape=[0, 3, 4, 4], data=[]), "has shape [0, 3, 4, 4], must be"),
    "no data": (input_without("data"), "must have either data or a binary_data_size"),
    "data twice": (input_with(parameters={"binary_data_size": 0}), "must have either data or a binary_data_size"),
    "data": (input_with(data="0" * 48), "has data '000"),
    "too few values": (input_with(data=[0.5] * 47), "has 47 values, must be 48 for shape [1, 3, 4, 4]"),
    "too many values": (input_with(data=[0.5] * 49), "has 49 values, must be 48"),
    "no values": (input_with(data=[]), "has 0 values, must be 48"),
    "nested otherwise": (input_with(data=[[0.5] * 48]), "nested in another way"),
    "nested deeper": (input_with(data=np.zeros((1, 3, 4, 4, 1)).tolist()), "the value [0.0], must be a number"),
    "ragged": (input_with(data=[[[[1] * 4] * 4] * 3, 1]), "nested in another way"),
    "a boolean": (data_with(True), "has the value True, must be a number in the range of FP32"),
    "a text": (data_with("1"), "has the value '1', must be a number"),
    "null": (data_with(None), "has the value None, must be a number"),
    "a list for a number": (data_with([1]), "has the value [1], must be a number"),
    "beyond float32": (data_with(1e39), "has the value inf, must be finite and in the range of float32"),
    "a huge integer": (data_with(10**400), "number is infinity when parsed as double"),
    "unknown output": (
        changed(lambda request: request | {"outputs": [{"name": "loss"}]}),
        "outputs has the name 'loss', must be one of logits, top_classes",
    ),
    "binary_data": (
        changed(lambda request: request | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}),
        "output 'logits' has binary_data 1, must be true or false",
    ),
    "binary_data_output": (
        changed(lambda request: request | {"parameters": {"binary_data_output": "yes"}}),
        "the request has binary_data_output 'yes', must be true or false",
    ),
    "shared memory": (
        input_with(parameters={"shared_memory_region": "a"}),
        "input 'images' has the parameter shared_memory_region, which this server does not offer",
    ),
    "classification": (
        changed(lambda request: request | {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}),
        "output 'logits' has the parameter classification, which this server does not offer",
    ),
    "a long text": (input_with(datatype="F" * 10_000), "must be FP32"),
    "lines": (input_with(datatype="FP\n32"), r"has datatype 'FP\n32', must be FP32"),
}


@pytest.mark.parametrize("case", JSON_ERRORS)
def test_malformed_json_is_refused_with_its_reason(case: str) -> None:
    refused(*JSON_ERRORS[case])


@pytest.mark.parametrize("value", [256, -1, 0.5, 1.0, True, 10**30])
def test_integers_must_be_integers_in_their_range(value: object) -> None:
    signature = Signature("net", ("1",), "", (Tensor("images", "UINT8", (-1, 1)),), (LOGITS,))
    description = {"name": "images", "datatype": "UINT8", "shape": [1, 1], "data": [value]}
    refused(json.dumps({"inputs": [description]}).encode(), "must be an integer from 0 to 255", signature=signature)


def test_a_missing_input_is_named() -> None:
    refused(json.dumps(plain_request()).encode(), "input 'mask' is missing", signature=TWO)


@pytest.mark.parametrize("length", ["-1", "0", "1.5", "abc", "", " 20", "+20", "1_0", "٣", "1" * 30, "100000"])
def test_a_header_length_that_is_no_place_in_the_body_is_refused(length: str) -> None:
    body, _ = images_request(array(IMAGES))
    refused(body, f"{LENGTH} is {length!r}"[:40], length)


def test_a_header_length_inside_the_json_or_beyond_it_is_refused() -> None:
    body, length = images_request(array(IMAGES))
    refused(body, "are not JSON", str(int(length or 0) - 1))
    refused(body, "are not JSON", str(int(length or 0) + 1))
    refused(body, "are not JSON", None)


def test_bytes_that_are_missing_or_left_over_are_refused() -> None:
    body, length = images_request(array(IMAGES))
    refused(body[:-1], "has binary_data_size 384, must be at most the 383 bytes", length)
    refused(body[: int(length or 0)], "must be at most the 0 bytes", length)
    refused(body + b"1", "1 bytes follow the last tensor, must be none", length)
    without_header = input_without("data").replace(b'"FP32"', b'"FP32", "parameters": {"binary_data_size": 192}')
    refused(without_header, f"given by the header {LENGTH}")


@pytest.mark.parametrize("size", [-1, 1.5, True, "384", 2**70, None])
def test_a_binary_size_that_lies_is_refused(size: object) -> None:
    body, length = images_request(array(IMAGES))
    head = body[: int(length or 0)].replace(b"384", json.dumps(size).encode())
    refused(head + body[int(length or 0) :], "has binary_data_size", str(len(head)))


def test_bytes_must_be_those_of_the_shape() -> None:
    body, length = images_request(array(IMAGES))
    refused(body.replace(b"[2,", b"[1,"), "has 384 bytes of data, must be 192 for FP32 [1, 3, 4, 4]", length)
    refused(body.replace(b"[2,", b"[3,"), "has 384 bytes of data, must be 576", length)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_in_bytes(value: float) -> None:
    values = array(IMAGES)
    values[1, 2, 3, 0] = value
    refused(images_request(values)[0], f"has the value {value}, must be finite", images_request(values)[1])


def test_what_is_too_large_is_413() -> None:
    nine = array(IMAGES, batch=9)
    for binary in (True, False):
        body, length = images_request(nine, binary=binary)
        refused(body, "has shape [9, 3, 4, 4], its batch must be at most 8", length, status=413)
    refused(input_with(shape=[10_000, 3, 4, 4]), "its batch must be at most 8", status=413)
    refused(b" " * 101, "the body has 101 bytes, must be at most 100", status=413, limits=Limits(8, 100))
    refused(b"[" + b"[]," * 300_000 + b"0]", "the JSON has 300001 lists and objects", status=413)


def test_a_shape_of_huge_sizes_allocates_nothing() -> None:
    wild = Signature("net", ("1",), "", (Tensor("x", "FP32", (-1, -1, -1)),), (LOGITS,))
    description = {"name": "x", "datatype": "FP32", "shape": [8, 2**31 - 1, 2**31 - 1], "data": [1.0]}
    body = json.dumps({"inputs": [description]}).encode()
    tracemalloc.start()
    refused(body, "has 1 values, must be", signature=wild)
    binary = body.replace(b'"data": [1.0]', b'"parameters": {"binary_data_size": 0}')
    refused(binary, "has 0 bytes of data, must be", signature=wild)
    for size in (2**31, 10**300):
        longer = body.replace(str(2**31 - 1).encode(), str(size).encode())
        refused(longer, "must be [-1, -1, -1] with -1 for any size from 1 to 2147483647", signature=wild)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_graph_whose_values_are_no_numbers_has_no_signature() -> None:
    class Text:
        name, type, shape = "labels", "tensor(string)", [1]

    class Session:
        get_inputs = get_outputs = staticmethod(lambda: [Text])

    with pytest.raises(InputError, match=r"labels is tensor\(string\), must be one of tensor\(uint8\)"):
        Signature.of(Session(), "net")


# --- fuzz

CASES = 10_000
NASTY = [None, True, False, 0, -1, 1, 3, 1.5, 1e400, 2**63, -(2**70), "", "images", "FP32", "é", [], [[]], {}, [None]]
LENGTHS = ["-1", "0", "1", "NaN", "", "1e3", "99999999999999999999"]


def valid(generator: random.Random) -> tuple[bytes, str | None]:
    batch = generator.randint(1, 3)
    names = generator.sample(["images", "mask"], 2)
    tensors = {tensor.name: tensor for tensor in TWO.inputs}
    arrays = {name: array(tensors[name], batch, generator.randint(0, 99)) for name in names}
    binaries = [generator.random() < 0.5 for _ in names]
    return triton_request(arrays, {"images": "FP32", "mask": "UINT8"}, binary=binaries, request_id="f")


def swap_type(head: bytes, generator: random.Random) -> bytes:
    """Replace, drop or repeat one node of the JSON."""
    tree = json.loads(head)
    node: Any = tree
    while True:
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and generator.random() < 0.8:
            node = node[key]
            continue
        if generator.random() < 0.2:
            del node[key]
        else:
            node[key] = generator.choice(NASTY)
        return json.dumps(tree).encode()


def flip(data: bytes, generator: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
    return bytes(flipped)


def mutated(body: bytes, length: str | None, generator: random.Random) -> tuple[bytes, str | None]:
    split = len(body) if length is None else int(length)
    head, tail = body[:split], body[split:]
    match generator.randrange(7):
        case 0:
            return body, length
        case 1:
            return flip(body, generator), length
        case 2:
            return body[: generator.randrange(len(body))], length
        case 3:
            head = swap_type(head, generator)
        case 4:
            tail += generator.randbytes(generator.randint(1, 9))
        case 5:
            return body, generator.choice([*LENGTHS, str(split + generator.randint(-3, 3))])
        case _:
            place = generator.randrange(len(head))
            head = head[:place] + generator.randbytes(generator.randint(1, 4)) + head[place:]
    return head + tail, None if length is None else str(len(head))


def expected(body: bytes, length: str | None) -> dict[str, np.ndarray]:
    """A second reading of an accepted request, with no check at all."""
    split = len(body) if length is None else int(length)
    tail, arrays = body[split:], {}
    for each in json.loads(body[:split])["inputs"]:
        dtype = {"FP32": np.float32, "UINT8": np.uint8}[each["datatype"]]
        if "data" in each:
            values = np.array(each["data"], dtype)
        else:
            size = each["parameters"]["binary_data_size"]
            values, tail = np.frombuffer(tail[:size], dtype), tail[size:]
        arrays[each["name"]] = values.reshape(each["shape"])
    assert not tail
    return arrays


def test_ten_thousand_mutated_requests_are_refused_or_read_right() -> None:
    generator = random.Random(0)
    accepted, reasons = 0, set()
    requests = [valid(generator) for _ in range(100)]
    for _ in range(CASES):
        body, length = mutated(*generator.choice(requests), generator)
        try:
            request = decode(body, length, TWO, LIMITS)
        except ProtocolError as error:
            assert error.status in (400, 413) and "\n" not in str(error) and len(str(error)) < 400
            reasons.add("".join(character for character in str(error)[:40] if not character.isdigit()))
            continue
        accepted += 1
        second = expected(body, length)
        assert request.inputs.keys() == second.keys() == {"images", "mask"}
        for name, values in second.items():
            assert request.inputs[name].tobytes() == values.tobytes() and np.isfinite(values).all()
            assert 1 <= len(values) <= LIMITS.max_batch
    assert accepted > CASES / 10 and len(reasons) > 40
