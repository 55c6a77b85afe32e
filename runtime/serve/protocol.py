"""The Open Inference Protocol v2 with its binary tensor extension: bytes to tensors and back.

https://github.com/kserve/open-inference-protocol and Triton's `protocol` extensions. Nothing here
knows a model or a server. An `infer` body is a JSON document; with the header
`Inference-Header-Content-Length` it is one of that length, and the raw tensors follow it in the
order in which it names them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.runtime.serve.reply import Refusal, Reply

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "UINT8": np.uint8}
BYTES = "BYTES"
DATATYPES = (*DTYPES, BYTES)
"""What a request may hold; answers have some more."""
ANSWER_DTYPES: dict[str, str] = {"FP32": "<f4", "INT32": "<i4", "BOOL": "|b1"}
MAX_AXES, LONGEST_AXIS = 8, 2**31
PART_BYTES = 2**16
"""Of a list in JSON, from which Python's own numbers are made at once."""
Parameters = dict[str, bool | int | float | str | None]
"""Of a request, an input or an output: no lists, which can cost 30 times their bytes."""
Listed = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array"})]
"""Lists that are looked at before they are made: see `_from_json`."""
_ELEMENTS: dict[str, tuple[msgspec.json.Decoder[list[Any]], str]] = {
    "FP32": (msgspec.json.Decoder(list[float]), "numbers"),
    "UINT8": (
        msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, le=255)]]),
        "whole numbers from 0 to 255",
    ),
    BYTES: (msgspec.json.Decoder(list[str]), "texts"),
}


class InputTensor(msgspec.Struct, frozen=True):
    """An input as the JSON document names it; `data` is absent when it follows in binary."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = {}
    data: Listed = msgspec.field(default_factory=msgspec.Raw)

    @property
    def has_data(self) -> bool:
        """Whether there is any."""
        return bytes(memoryview(self.data)[:4]) not in (b"", b"null")


class OutputTensor(msgspec.Struct, frozen=True):
    """An output that is asked for.

    Parameters: `binary_data` (raw instead of JSON), `classification` (the best k classes instead
    of the numbers).
    """

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON document of an `infer` request."""

    inputs: tuple[InputTensor, ...]
    id: str = ""
    parameters: Parameters = {}
    outputs: tuple[OutputTensor, ...] | None = None


@dataclass(frozen=True)
class Tensor:
    """An input with its data: an array of `shape`, or for BYTES the elements in order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | list[bytes]


@dataclass(frozen=True)
class Inference:
    """A request as it was meant; see `InferRequest`."""

    id: str
    inputs: tuple[Tensor, ...]
    parameters: dict[str, Any]
    outputs: tuple[OutputTensor, ...] | None


@dataclass(frozen=True)
class Output:
    """What a model answers: an array, or for BYTES an array of str, of the first axis n."""

    name: str
    datatype: str
    data: NDArray[Any]


_decoder = msgspec.json.Decoder(InferRequest)
_encode = msgspec.json.Encoder().encode


def parse_infer(body: bytes, header_length: str | None = None) -> Inference:
    """Read the body of an `infer` request.

    Args:
        body: all of it.
        header_length: the header `Inference-Header-Content-Length`; None when it is absent.

    Raises:
        Refusal: 400, malformed.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    view = memoryview(body)
    try:
        request = _decoder.decode(view[:length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise Refusal(400, f"the request is not what the protocol says: {reason}") from None
    if not request.inputs:
        raise Refusal(400, "the request has no inputs")
    rest, tensors = view[length:], []
    for given in request.inputs:
        tensor, rest = _tensor(given, rest)
        tensors.append(tensor)
    if rest:
        raise Refusal(400, f"{len(rest)} bytes follow the last binary tensor: check its size")
    return Inference(request.id, tuple(tensors), request.parameters, request.outputs)


def _length(header_length: str, available: int) -> int:
    if not (header_length.isascii() and header_length.isdigit()):
        raise Refusal(400, f"{HEADER_LENGTH} must be a number of bytes, not {header_length[:40]!r}")
    length = int(header_length[:20])
    if length > available:
        raise Refusal(400, f"{HEADER_LENGTH} is {length}, but the body has {available} bytes")
    return length


def _tensor(given: InputTensor, rest: memoryview) -> tuple[Tensor, memoryview]:
    """Return the input with its data, and what of the binary part is left."""
    name, shape = _quoted(given.name), given.shape
    if given.datatype not in DATATYPES:
        raise Refusal(
            400,
            f"input {name}: unknown datatype {_quoted(given.datatype)}: choose from "
            f"{', '.join(DATATYPES)}",
        )
    if not 1 <= len(shape) <= MAX_AXES or min(shape) < 1 or max(shape) > LONGEST_AXIS:
        shown = [side if abs(side) <= LONGEST_AXIS else "too long" for side in shape[:MAX_AXES]]
        raise Refusal(400, f"input {name}: no shape of an image: {shown}")
    size = given.parameters.get("binary_data_size")
    if size is None:
        if not given.has_data:
            raise Refusal(400, f"input {name} has neither data nor binary_data_size")
        return Tensor(given.name, given.datatype, shape, _from_json(given)), rest
    if given.has_data:
        raise Refusal(400, f"input {name} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refusal(
            400, f"input {name}: binary_data_size is {size!r:.40}, {len(rest)} bytes are left"
        )
    raw, rest = rest[:size], rest[size:]
    return Tensor(given.name, given.datatype, shape, _from_binary(given, raw)), rest


def _from_binary(given: InputTensor, raw: memoryview) -> NDArray[Any] | list[bytes]:
    count = math.prod(given.shape)
    if given.datatype == BYTES:
        elements: list[bytes] = []
        at = 0
        while at + 4 <= len(raw) and len(elements) < count:
            size = int.from_bytes(raw[at : at + 4], "little")
            elements.append(bytes(raw[at + 4 : at + 4 + size]))
            at += 4 + size
        if at != len(raw) or len(elements) != count:
            raise Refusal(
                400,
                f"input {_quoted(given.name)}: {len(raw)} bytes are not the {count} elements of "
                f"shape {list(given.shape)}, each behind its length in 4 bytes",
            )
        return elements
    dtype = np.dtype(DTYPES[given.datatype]).newbyteorder("<")
    if len(raw) != count * dtype.itemsize:
        raise Refusal(
            400,
            f"input {_quoted(given.name)}: {len(raw)} bytes, but {given.datatype} "
            f"{list(given.shape)} has {count * dtype.itemsize}",
        )
    # where it begins depends on the JSON before it; engines want whole words
    return np.require(np.frombuffer(raw, dtype), requirements="A").reshape(given.shape)


def _from_json(given: InputTensor) -> NDArray[Any] | list[bytes]:
    """Read nested or flat lists; BYTES elements are in base64.

    As in Triton the elements count, in their order, and not how they are nested. So the brackets go
    before anything is made, and the first of a million empty lists ends it.
    """
    decoder, kind = _ELEMENTS[given.datatype]
    dtype = DTYPES.get(given.datatype)
    count, name = math.prod(given.shape), _quoted(given.name)
    parts: list[Any] = []
    text = bytes(given.data)
    if text.startswith(b"[") and text.count(b",") == count - 1:
        with suppress(msgspec.DecodeError, UnicodeDecodeError), np.errstate(over="ignore"):
            for part in _parts(text.translate(None, b"[]")):
                elements = decoder.decode(b"[%b]" % part)
                parts.append(elements if given.datatype == BYTES else np.array(elements, dtype))
    if sum(map(len, parts)) != count:
        raise Refusal(
            400, f"input {name}: the data are not the {count} {kind} of shape {list(given.shape)}"
        )
    if given.datatype == BYTES:
        return [_from_base64(one, name) for part in parts for one in part]
    return np.concatenate(parts).reshape(given.shape)


def _parts(text: bytes) -> Iterator[bytes]:
    """Yield a list's text in parts: a number takes 40 bytes while it is one of Python's own."""
    at = 0
    while at <= len(text):
        comma = text.find(b",", at + PART_BYTES)
        end = len(text) if comma < 0 else comma
        yield text[at:end]
        at = end + 1


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refusal(
            400, f"input {name}: BYTES in JSON are base64; or send them in binary"
        ) from None


def encode_infer(
    head: Mapping[str, Any], outputs: Sequence[tuple[Output, Mapping[str, Any]]]
) -> Reply:
    """Write the response to an `infer` request.

    Args:
        head: `model_name`, `model_version` and the like.
        outputs: each with its parameters: `binary_data` says whether it is sent raw.
    """
    described, raws = [], []
    for output, parameters in outputs:
        one: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.data.shape,
        }
        if parameters.get("binary_data"):
            raw = _to_binary(output)
            one["parameters"] = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            one["data"] = output.data.ravel().tolist()
        described.append(one)
    document = _encode({**head, "outputs": described})
    if not raws:
        return Reply(document)
    headers = {HEADER_LENGTH: str(len(document))}
    return Reply(b"".join([document, *raws]), content_type=BINARY, headers=headers)


def _to_binary(output: Output) -> bytes:
    if output.datatype == BYTES:
        elements = [str(text).encode() for text in output.data.ravel()]
        return b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    return output.data.astype(ANSWER_DTYPES[output.datatype], copy=False).tobytes()


def best_classes(output: Output, classes: Sequence[str], k: int) -> Output:
    """Return the k best classes instead of probabilities [n, C]: BYTES [n, k], `value:index:label`.

    Triton's classification extension.
    """
    order = np.argsort(-output.data, axis=1, kind="stable")[:, :k]
    text = [
        [f"{row[index]:f}:{index}:{classes[index]}" for index in best]
        for row, best in zip(output.data, order, strict=True)
    ]
    return Output(output.name, BYTES, np.array(text, object))


def take_parameters(
    parameters: Mapping[str, Any], valid: Sequence[str]
) -> tuple[float | None, str | float | None]:
    """Return `max_ms` and `policy` of a request's parameters.

    Args:
        parameters: of the JSON document, of a query or of a form.
        valid: the names that there may be.

    Raises:
        Refusal: 400, an unknown name or a value of another type.
    """
    for name in parameters:
        if name not in valid:
            raise Refusal(400, f"unknown parameter {_quoted(name)}: choose from {', '.join(valid)}")
    max_ms, policy = parameters.get("max_ms"), parameters.get("policy")
    if max_ms is not None:
        max_ms = number_of(max_ms)
        if max_ms is None or not 0 < max_ms < math.inf:
            given = parameters["max_ms"]
            raise Refusal(400, f"max_ms must be a positive number of ms, not {given!r:.40}")
    if policy is not None:
        threshold = number_of(policy)
        if threshold is not None:
            policy = threshold
        elif not isinstance(policy, str):
            raise Refusal(400, f"policy must be a name or a threshold, not {policy!r:.40}")
    return max_ms, policy


def number_of(value: object) -> float | None:
    """Read a number, or a text that is one; return None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(found) else found


def _quoted(text: str) -> str:
    """Return a stranger's text, cut."""
    return repr(text[:60])
