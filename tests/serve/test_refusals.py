"""What the server refuses: with the protocol's status, a text that helps, and nothing secret."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

FRAME: dict[str, Any] = {
    "name": "frames", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12,
}  # fmt: skip
INFER = "/v2/models/digits/infer"
HOST = "host: localhost\r\n"


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hasty(start: Any, repository: Path, state: Path) -> Iterator[Any]:
    """A server that waits 3 s for what comes, so that a test need not wait longer."""
    with start(
        repository.parent, state, repository / "digits.mate", "--read-timeout", "3"
    ) as found:
        yield found
        assert found.ask("GET", "/v2/health/ready").status == 200


@pytest.fixture(autouse=True)
def _still_serves(server: Any) -> Any:
    """Whatever was refused, the next request is answered."""
    yield
    assert server.infer("digits", {"inputs": [FRAME]}).status == 200
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        ({}, 400, "inputs"),
        ({"inputs": []}, 400, "no inputs"),
        ({"inputs": [FRAME, FRAME]}, 400, "takes one input"),
        ({"inputs": [{**FRAME, "name": "cat"}]}, 400, "images (FP32), frames (UINT8), encoded"),
        ({"inputs": [{**FRAME, "datatype": "FP32"}]}, 400, "frames is UINT8, not FP32"),
        ({"inputs": [{**FRAME, "datatype": "FP99"}]}, 400, "choose from FP32, UINT8, BYTES"),
        ({"inputs": [{**FRAME, "shape": [12]}]}, 400, "not [n, H, W, 3]"),
        ({"inputs": [{**FRAME, "shape": [1, 3, 2, 2]}]}, 400, "not [n, H, W, 3]"),
        ({"inputs": [{**FRAME, "shape": [129, 1, 1, 3], "data": [0] * 387}]}, 400, "129 images"),
        (
            {"inputs": [{**FRAME, "name": "images", "datatype": "FP32"}]},
            400,
            "not [n, 1, 32, 32]",
        ),
        (
            {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}]},
            400,
            "not an image",
        ),
        (
            {
                "inputs": [
                    {"name": "encoded", "datatype": "BYTES", "shape": [2], "data": ["AAAA"] * 2}
                ]
            },
            400,
            "image 1 of 2",
        ),
        ({"inputs": [FRAME], "parameters": {"deadline": 5}}, 400, "choose from max_ms, policy"),
        ({"inputs": [FRAME], "parameters": {"max_ms": -1}}, 400, "positive number of ms"),
        ({"inputs": [FRAME], "parameters": {"policy": "ballanced"}}, 400, "Did you mean balanced"),
        ({"inputs": [FRAME], "parameters": {"policy": 7}}, 400, "between 0 and 1"),
        ({"inputs": [FRAME], "parameters": {"policy": "exit-9"}}, 400, "from 1 to 3, not 9"),
        ({"inputs": [FRAME], "parameters": {"policy": "/etc/a.json"}}, 400, "unknown policy"),
        ({"inputs": [FRAME], "parameters": {"policy": "../" * 90}}, 400, "unknown policy"),
        ({"inputs": [FRAME], "outputs": [{"name": "logits"}]}, 400, "choose from probabilities"),
        ({"inputs": [FRAME], "outputs": [{"name": "label"}] * 2}, 400, "named twice"),
        (
            {"inputs": [FRAME], "outputs": [{"name": "label", "parameters": {"top": 1}}]},
            400,
            "choose from binary_data, classification",
        ),
        (
            {
                "inputs": [FRAME],
                "outputs": [{"name": "label", "parameters": {"classification": 1}}],
            },
            400,
            "goes with the output probabilities",
        ),
        (
            {"inputs": [FRAME], "parameters": {"binary_data_output": "yes"}},
            400,
            "true or false",
        ),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_told_what_would(
    server: Any, document: Any, status: int, said: str
) -> None:
    reply = server.infer("digits", document)
    assert reply.status == status
    assert said in reply.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_no_network_survives_are_the_clients_fault(server: Any, value: float) -> None:
    data = np.full((1, 1, 32, 32), value, "<f4").tobytes()
    tensor = {
        "name": "images", "datatype": "FP32", "shape": [1, 1, 32, 32],
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    document = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(document))}
    reply = server.ask("POST", INFER, document + data, headers)
    assert reply.status == 400
    assert "no image is preprocessed to" in reply.error


def test_unknown_models_versions_and_paths_are_not_found(server: Any) -> None:
    assert "Did you mean digits?" in server.infer("digit", {"inputs": [FRAME]}).error
    for path, status in (
        ("/v2/models/cats", 404),
        ("/v2/models/digits/versions/9", 404),
        ("/v2/models/digits/versions/9/ready", 404),
        ("/v2/models/%2e%2e%2fetc/config", 404),
        ("/v2/models/" + "a" * 3000, 404),
        ("/v3", 404),
        (INFER, 405),
    ):
        reply = server.ask("GET", path)
        assert reply.status == status, path
        assert len(reply.error) < 400
    for path in ("load?version=9", "load?version=../1", "load?version=-1"):
        reply = server.ask("POST", f"/v2/repository/models/digits/{path}", b"")
        assert reply.status == 404
        assert "choose from 1" in reply.error
    for name in ("cats", "..", "%2e%2e"):
        reply = server.ask("POST", f"/v2/repository/models/{name}/load", b"")
        assert reply.status == 404
        assert reply.error
    reply = server.ask(
        "POST", "/v2/repository/models/digits/load", b'{"parameters": {"config": "{}"}}'
    )
    assert reply.status == 400
    assert "choose from version" in reply.error


def test_an_image_file_that_is_none_or_of_another_type_is_refused(server: Any) -> None:
    def classify(body: bytes, kind: str, query: str = "model=digits") -> Any:
        return server.ask("POST", f"/v1/classify?{query}", body, {"content-type": kind})

    assert "is not an image" in classify(b"no image", "image/png").error
    assert "is empty" in classify(b"", "image/png").error
    assert "say in the address which model" in classify(png(4, 4), "image/png", "").error
    assert "unknown parameter 'top'" in classify(png(4, 4), "image/png", "model=digits&top=1").error
    unsupported = classify(b"{}", "application/json")
    assert unsupported.status == 415
    assert "multipart/form-data" in unsupported.error
    boundless = classify(b"", "multipart/form-data")
    assert (boundless.status, "no boundary" in boundless.error) == (400, True)
    for form in (b"", b"--x", b"--x\r\n\r\n", b"--x--\r\n", b"\xff" * 500):
        assert classify(form, "multipart/form-data; boundary=x").status == 400


def test_an_image_bomb_is_refused_without_being_unpacked(server: Any) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", compress(bytes(90_001)))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")
    reply = server.ask("POST", "/v1/classify?model=digits", bomb, {"content-type": "image/png"})
    assert reply.status == 400
    assert "pixels" in reply.error


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Any) -> None:
    declared = server.ask("POST", INFER, bytes(2 * 2**20))
    assert declared.status == 413
    assert "1048576 bytes" in declared.error
    chunked = server.ask("POST", INFER, iter([bytes(2**20)] * 2))
    assert chunked.status == 413
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        length = f"content-length: 9{'9' * 18}"
        link.sendall(f"POST {INFER} HTTP/1.1\r\n{HOST}{length}\r\n\r\n".encode())
        assert link.recv(100).startswith(b"HTTP/1.1 413")


def test_who_sends_too_slowly_is_cut_off_and_nobody_else_waits(hasty: Any) -> None:
    heads = (
        b"",
        b"POST /v2 HTTP/1.1\r\nhost: localhost\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 200,
    )
    body = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{{".encode()
    links = [socket.create_connection(("127.0.0.1", hasty.port)) for _ in range(len(heads) + 1)]
    try:
        for link, sent in zip(links, (*heads, body), strict=True):
            link.sendall(sent)
            link.settimeout(60)
        assert hasty.ask("GET", "/v2/health/live").status == 200
        assert [link.recv(4096) for link in links[:3]] == [b""] * 3
        with links[3].makefile("rb") as answer:
            text = answer.read()
        assert text.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 3 s" in text
    finally:
        for link in links:
            link.close()


def test_a_compressed_body_is_refused(server: Any) -> None:
    reply = server.ask("POST", INFER, compress(b"{}"), {"content-encoding": "deflate"})
    assert reply.status == 415
    assert "Content-Encoding" in reply.error


def test_headers_without_end_are_cut_off(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        link.sendall(b"GET / HTTP/1.1\r\n" + b"x: yyyyyyyyyyyyyy\r\n" * 8000)
        assert link.recv(4096).startswith(b"HTTP/1.1 400")


def is_cut_off(link: socket.socket, data: bytes, within_s: float) -> bool:
    """Send the same again and again, reading nothing; say whether the server ends it."""
    until = time.monotonic() + within_s
    try:
        while time.monotonic() < until:
            link.sendall(data)
            time.sleep(0.01)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    "trailers", [b"x: yyyyyyyyyyyyyy\r\n" * 8000, b"x: " + b"y" * 200_000], ids=["many", "long"]
)
def test_trailers_without_end_are_cut_off(server: Any, trailers: bytes) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        link.sendall(head.encode() + b"2\r\n{}\r\n0\r\n")
        assert is_cut_off(link, trailers, 20)  # before the server's 30 s for headers are over


def test_who_reads_no_answer_is_cut_off(hasty: Any) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), 60) as link:
        link.sendall(b"GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2000)
        assert is_cut_off(link, b"GET / HTTP/1.1\r\n", 60)


def test_an_empty_line_after_an_answer_keeps_no_connection(hasty: Any) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), 60) as link:
        link.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"live":true}'):  # head and body may come apart
            answer += link.recv(4096)
        link.sendall(b"\r\n")
        assert link.recv(4096) == b""


def test_texts_among_the_numbers_cost_no_memory(server: Any) -> None:
    peak = Path(f"/proc/{server.process.pid}/status")
    if not peak.exists():
        pytest.skip("this system has no /proc")

    def peak_mb() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", peak.read_text())
        assert found is not None
        return int(found[1]) // 1024

    before = peak_mb()
    data = ["a" * 10_000] + [0] * 40_000
    tensor = {**FRAME, "name": "images", "datatype": "FP32", "shape": [1, 1, 1, 40_001]}
    assert (
        "are not the 40001 numbers"
        in server.infer("digits", {"inputs": [{**tensor, "data": data}]}).error
    )
    assert peak_mb() - before < 200


def test_what_is_no_http_is_refused_as_json(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        link.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        with link.makefile("rb") as reader:
            answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'{"error"' in answer


def test_a_page_of_another_site_may_not_use_the_server(server: Any) -> None:
    for path in (INFER, "/v1/classify", "/v2/repository/models/digits/unload"):
        reply = server.ask("POST", path, b"{}", {"origin": "http://evil.example"})
        assert reply.status == 403
        assert "other sites" in reply.error
    assert server.ask("POST", INFER, b"{}", {"origin": "http://["}).status == 403
    own = {"origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("POST", INFER, json.dumps({"inputs": [FRAME]}), own).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.2:8000", 200),
        ("[::1]:8000", 200),
    ],
)
def test_only_this_machines_own_names_are_answered_to(server: Any, host: str, status: int) -> None:
    """A page may give this machine a name of its site, and is then no other site to a browser."""
    reply = server.ask("GET", "/v1/models", headers={"host": host})
    assert reply.status == status
    if status != 200:
        assert "--allow-host" in reply.error


def test_when_the_queue_is_full_clients_are_told_to_come_again(server: Any) -> None:
    slow, replies = png(9400, 9400), []  # nearly as many pixels as it takes
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(60)
        kind = {"content-type": "image/png"}
        replies.append(server.ask("POST", "/v1/classify?model=digits", slow, kind))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [reply for reply in replies if reply.status == 503]
    answered = [reply for reply in replies if reply.status == 200]
    assert len(refused) + len(answered) == 8
    assert len(answered) >= 3
    assert refused
    assert all(reply.headers["retry-after"] == "1" for reply in refused)
    assert all("2 requests wait already" in reply.error for reply in refused)
    assert len({reply.json["index"] for reply in answered}) == 1


def test_clients_that_hang_up_take_nothing_along(server: Any) -> None:
    body = json.dumps({"inputs": [FRAME]}).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    for sent in (head, head + body[:20], head + body):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as link:
                link.sendall(sent)
    deadline = time.monotonic() + 60
    while b"mate_edge_queue_accepted 0.0" not in server.ask("GET", "/metrics").body:
        assert time.monotonic() < deadline
