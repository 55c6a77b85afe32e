"""Bytes to tensors and back: what the public client writes, and what nobody should."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mate_edge.runtime.serve.outputs import choose_outputs
from mate_edge.runtime.serve.protocol import (
    HEADER_LENGTH,
    Inference,
    Output,
    OutputTensor,
    best_classes,
    encode_infer,
    parse_infer,
    take_parameters,
)
from mate_edge.runtime.serve.reply import Refusal

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)
FLOATS = arrays.arrays(np.float32, SHAPES, elements=st.floats(-1e6, 1e6, width=32))
FRAMES = arrays.arrays(np.uint8, SHAPES)
ENCODED = st.lists(st.binary(max_size=30), min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


def written(name: str, datatype: str, data: np.ndarray, binary: bool) -> tuple[bytes, str | None]:
    """Return the body and header length that the public client makes."""
    tensor = tritonclient.InferInput(name, list(data.shape), datatype)
    tensor.set_data_from_numpy(data, binary_data=binary)
    body, length = tritonclient.InferenceServerClient.generate_request_body([tensor])
    return body, None if length is None else str(length)


def attempted(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or its refusal; every other exception goes through."""
    try:
        return call()
    except Refusal as refusal:
        return refusal


def refused(body: bytes, length: str | None = None) -> str:
    with pytest.raises(Refusal) as error:
        parse_infer(body, length)
    assert error.value.status == 400
    assert len(str(error.value)) < 600
    return str(error.value)


@settings(max_examples=50)
@given(data=FLOATS | FRAMES, binary=st.booleans())
def test_numbers_that_the_public_client_writes_are_read_as_they_were(
    data: np.ndarray, binary: bool
) -> None:
    datatype = "FP32" if data.dtype == np.float32 else "UINT8"
    found = parse_infer(*written("x", datatype, data, binary)).inputs[0]
    assert (found.name, found.datatype, found.shape) == ("x", datatype, data.shape)
    assert isinstance(found.data, np.ndarray)
    assert found.data.dtype == data.dtype
    assert found.data.flags.aligned
    np.testing.assert_array_equal(found.data, data)


@given(ENCODED)
def test_byte_strings_that_the_public_client_writes_are_read_as_they_were(
    elements: list[bytes],
) -> None:
    data = np.array(elements, object)
    assert parse_infer(*written("x", "BYTES", data, binary=True)).inputs[0].data == elements


def test_byte_strings_in_json_are_base64() -> None:
    document: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", "data": ["AAE=", "/w=="]}]
    }
    assert parse_infer(json.dumps(document).encode()).inputs[0].data == [b"\0\1", b"\xff"]
    document["inputs"][0]["data"] = ["not base64!", "AAE="]
    assert "base64" in refused(json.dumps(document).encode())
    document["inputs"][0]["data"] = ["AAE="]
    assert "not the 2 texts of shape" in refused(json.dumps(document).encode())


@given(body=st.binary(max_size=200), length=st.none() | st.text(max_size=6) | st.just("20"))
def test_any_bytes_are_refused_and_nothing_else_happens(body: bytes, length: str | None) -> None:
    refused(body, length)


@settings(max_examples=50)
@given(
    inputs=JSON,
    name=JSON,
    shape=JSON | st.lists(st.integers(), max_size=4),
    datatype=st.sampled_from(["FP32", "UINT8", "BYTES", "INT64", ""]),
    data=JSON,
    size=JSON | st.integers(-2, 40),
)
def test_any_document_is_read_to_the_shape_it_names_or_refused(
    inputs: Any, name: Any, shape: Any, datatype: str, data: Any, size: Any
) -> None:
    tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    without = {key: tensor[key] for key in ("name", "shape", "datatype")}
    binary = {**without, "parameters": {"binary_data_size": size}}
    for given_inputs in (inputs, [tensor], [binary], [tensor, binary]):
        document = json.dumps({"inputs": given_inputs}).encode()
        found = attempted(partial(parse_infer, document + bytes(12), str(len(document))))
        if isinstance(found, Refusal):
            assert found.status == 400
            continue
        assert isinstance(found, Inference)
        for one in found.inputs:
            assert len(one.data) > 0
            if isinstance(one.data, np.ndarray):
                assert one.data.shape == one.shape
            else:
                assert len(one.data) == math.prod(one.shape)


@given(data=FLOATS, cut=st.integers(1, 50))
def test_a_body_that_is_cut_or_has_more_is_refused(data: np.ndarray, cut: int) -> None:
    body, length = written("x", "FP32", data, binary=True)
    assert "bytes" in refused(body[: -min(cut, data.nbytes)], length)
    assert f"{cut} bytes follow" in refused(body + bytes(cut), length)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"datatype": "FP64"}, "choose from FP32, UINT8, BYTES"),
        ({"shape": []}, "no shape"),
        ({"shape": [1, 0]}, "no shape"),
        ({"shape": [10**30]}, "no shape"),
        ({"shape": [10**1000] * 8}, "no shape of an image: ['too long'"),
        ({"shape": [2**31] * 8}, "numbers of shape"),
        ({"data": [[1, 2], [3]]}, "numbers of shape"),
        ({"data": ["1", "2"]}, "numbers of shape"),
        ({"data": [True, False]}, "numbers of shape"),
        ({"data": [None, 1]}, "numbers of shape"),
        ({"data": [[1, 2], []]}, "numbers of shape"),
        ({"data": [[1], [], [2]]}, "numbers of shape"),
        ({"data": [], "shape": [1]}, "1 numbers of shape"),
        ({"data": 1, "shape": [1]}, "1 numbers of shape"),
        ({"data": "AAE=", "shape": [1], "datatype": "BYTES"}, "1 texts of shape"),
        ({"data": {"a": 1}, "shape": [1]}, "1 numbers of shape"),
        ({"datatype": "UINT8", "data": [1, 256]}, "from 0 to 255"),
        ({"datatype": "UINT8", "data": [1, 0.5]}, "from 0 to 255"),
        ({"parameters": {"binary_data_size": 8}}, "both data and binary_data_size"),
        ({"data": None}, "neither data nor binary_data_size"),
        ({"data": None, "parameters": {"binary_data_size": True}}, "binary_data_size is True"),
        ({"parameters": {"a": [1]}}, "got `array`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tensor_is_said(tensor: dict[str, Any], said: str) -> None:
    whole = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **tensor}
    assert said in refused(json.dumps({"inputs": [whole]}).encode())


def test_a_document_without_end_is_no_stack_overflow() -> None:
    refused(b'{"inputs":' + b"[" * 100_000)
    deep = b"[" * 100_000 + b"1" + b"]" * 100_000
    refused(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + deep + b"}]}")


def test_how_the_elements_are_nested_does_not_matter() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]):
        tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": data}
        found = parse_infer(json.dumps({"inputs": [tensor]}, indent=4).encode()).inputs[0]
        np.testing.assert_array_equal(found.data, [[1, 2], [3, 4]])


def test_a_long_list_is_read_as_a_short_one_is() -> None:
    numbers = np.arange(300_000).reshape(3, -1)

    def ask(text: str) -> bytes:
        tensor = f'{{"name":"x","shape":[3,100000],"datatype":"FP32","data":{text}}}'
        return f'{{"inputs":[{tensor}]}}'.encode()

    text = json.dumps(numbers.tolist(), separators=(",", ":"))
    np.testing.assert_array_equal(parse_infer(ask(text)).inputs[0].data, numbers)
    for wrong in (text.replace("299999", ""), text.replace("150000", "1.5.0"), text[:-2] + ",]]"):
        refused(ask(wrong))


MANY = 100_000


@pytest.mark.parametrize(
    ("shape", "data", "parameters"),
    [
        ([MANY], [[]] * MANY, {}),
        ([MANY, 1, 1], [[[]]] * MANY, {}),
        ([MANY, 1, 1, 1], [[[[1]]]] * MANY, {}),
        ([MANY], [{}] * MANY, {}),
        ([3 * MANY], [1] * 3 * MANY, {}),
        ([1], [1], {"a": [[]] * MANY}),
    ],
)
def test_no_list_costs_far_more_memory_than_it_has_bytes(
    shape: list[int], data: list[Any], parameters: dict[str, Any]
) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": data}
    for document in (
        {"inputs": [{**tensor, "parameters": parameters}]},
        {"inputs": [tensor], "parameters": parameters},
        {"inputs": [tensor], "outputs": [{"name": "x", "parameters": parameters}]},
    ):
        body = json.dumps(document, separators=(",", ":")).encode()
        tracemalloc.start()
        try:
            attempted(partial(parse_infer, body))
            assert tracemalloc.get_traced_memory()[1] < 12 * len(body)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("binary", [True, False])
def test_the_public_client_reads_the_answer(binary: bool) -> None:
    numbers = np.array([[0.25, 0.75], [1, 0]], np.float32)
    outputs = [
        Output("probabilities", "FP32", numbers),
        Output("label", "BYTES", np.array(["Zürich", ""], object)),
        Output("index", "INT32", np.array([1, 0], np.int32)),
        Output("deadline_missed", "BOOL", np.array([True, False])),
    ]
    answer = encode_infer(
        {"model_name": "m", "id": "7"}, [(one, {"binary_data": binary}) for one in outputs]
    )
    length = answer.headers.get(HEADER_LENGTH)
    assert (length is not None) == binary
    found = tritonclient.InferResult.from_response_body(
        answer.body, header_length=None if length is None else int(length)
    )
    assert found.get_response()["id"] == "7"
    np.testing.assert_array_equal(found.as_numpy("probabilities"), numbers)
    labels = [one.decode() if binary else one for one in found.as_numpy("label").tolist()]
    assert labels == ["Zürich", ""]
    assert found.as_numpy("index").tolist() == [1, 0]
    assert found.as_numpy("deadline_missed").tolist() == [True, False]


def test_the_best_classes_come_first_and_no_more_than_there_are() -> None:
    output = Output("probabilities", "FP32", np.array([[0.2, 0.5, 0.3]], np.float32))
    names = ("a", "b", "c")
    best = best_classes(output, names, 2)
    assert best.datatype == "BYTES"
    assert best.data.tolist() == [["0.500000:1:b", "0.300000:2:c"]]
    assert best_classes(output, names, 99).data.shape == (1, 3)


def test_an_output_that_is_named_twice_is_refused_before_anything_is_computed() -> None:
    asked = (OutputTensor("probabilities"), OutputTensor("label"), OutputTensor("probabilities"))
    with pytest.raises(Refusal, match="the output probabilities is named twice") as error:
        choose_outputs(Inference("", (), {}, asked))
    assert error.value.status == 400


@pytest.mark.parametrize("wrong", [0, -1, True, "2", 1.5, None])
def test_a_number_of_classes_that_is_none_is_refused_before_anything_is_computed(
    wrong: Any,
) -> None:
    asked = (OutputTensor("probabilities", {"classification": wrong}),)
    with pytest.raises(Refusal, match="positive number"):
        choose_outputs(Inference("", (), {}, asked))


def test_parameters_are_read_from_json_and_from_texts() -> None:
    valid = ("max_ms", "policy")
    assert take_parameters({"max_ms": 5, "policy": "fast"}, valid) == (5.0, "fast")
    assert take_parameters({"max_ms": "2.5", "policy": "0.9"}, valid) == (2.5, 0.9)
    assert take_parameters({}, valid) == (None, None)
    with pytest.raises(Refusal, match="unknown parameter 'deadline': choose from max_ms, policy"):
        take_parameters({"deadline": 5}, valid)


@settings(max_examples=50)
@given(JSON)
def test_any_value_of_a_parameter_is_taken_or_refused(value: Any) -> None:
    for name in ("max_ms", "policy"):
        found = attempted(partial(take_parameters, {name: value}, ("max_ms", "policy")))
        if isinstance(found, Refusal):
            assert found.status == 400
            assert name in str(found)
        else:
            max_ms, policy = found
            assert max_ms is None or 0 < max_ms < math.inf
            assert policy is None or isinstance(policy, str | float)
