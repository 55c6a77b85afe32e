"""The application and the server in this process: a worker is busy for as long as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from mate_edge.runtime import verify as verifying
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.serve import app as application
from mate_edge.runtime.serve import serve as serving
from mate_edge.runtime.serve.app import App
from mate_edge.runtime.serve.catalog import Catalog
from mate_edge.runtime.serve.guard import Guard
from mate_edge.runtime.serve.intake import Intake
from mate_edge.runtime.serve.loading import Options
from mate_edge.runtime.serve.model import Model
from mate_edge.runtime.serve.repository import Repository
from mate_edge.runtime.serve.workers import Workers


@pytest.fixture(scope="module")
def app(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One model, one worker; one request may wait."""
    metrics = Metrics()
    repository = Repository(Catalog([bundle_folder]), Options(1), metrics, lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATE_EDGE_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setattr(verifying, "MOST_ROUNDS", 10)
        repository.load_all()
    workers = Workers(1, 1)
    yield App(repository, workers, metrics, Intake(2**20, 30), Guard())
    workers.stop()
    repository.close()


class Request:
    """A request and what is sent back; its body is the file of a small image."""

    def __init__(self, method: str, path: str, query: str = "") -> None:
        self.scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "headers": [], "root_path": "", "state": {},
        }  # fmt: skip
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "PNG")
        return {"type": "http.request", "body": buffer.getvalue(), "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def run(self, app: App) -> None:
        await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        (start,) = (one for one in self.sent if one["type"] == "http.response.start")
        status: int = start["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def json(self) -> Any:
        return json.loads(b"".join(one.get("body", b"") for one in self.sent))


@contextlib.asynccontextmanager
async def busy(app: App) -> AsyncIterator[threading.Event]:
    """Keep the worker from other work until the event is set, or the block ends."""
    may_end = threading.Event()
    held = asyncio.ensure_future(app.workers.submit(lambda worker: may_end.wait(60)))
    try:
        yield may_end
    finally:
        may_end.set()
        await held


async def until_accepted(app: App, count: int) -> None:
    while app.workers.accepted < count:
        await asyncio.sleep(0.001)


def test_the_time_in_the_queue_counts_and_exit_1_answers_all_the_same(app: App) -> None:
    async def ask() -> Any:
        request = Request("POST", "/v1/classify", "policy=deepest&max_ms=20")
        async with busy(app) as may_end:
            asking = asyncio.ensure_future(request.run(app))
            await until_accepted(app, 2)
            await asyncio.sleep(0.05)
            may_end.set()
            await asking
        return request.json

    found = asyncio.run(ask())
    assert (found["exit"], found["halted_by"], found["deadline_missed"]) == (1, "deadline", True)
    assert 40 < found["queue_ms"] < found["elapsed_ms"]


def test_when_the_server_ends_what_waits_is_told_so(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> Request:
        request = Request("POST", "/v1/classify")
        async with busy(app):
            asking = asyncio.ensure_future(request.run(app))
            await until_accepted(app, 2)
            asking.cancel()
            await asking
        return request

    before = app.workers.dropped
    request = asyncio.run(ask())
    assert request.status == 503
    assert request.headers[b"retry-after"] == b"1"
    assert request.json == {"error": "the server ends"}
    assert app.workers.dropped == before + 1
    assert not caplog.records


def test_where_all_connections_are_busy_probes_are_answered_all_the_same(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "MAX_CONNECTIONS", 0)

    def asked(method: str, path: str) -> Request:
        request = Request(method, path)
        asyncio.run(request.run(app))
        return request

    refused = asked("POST", "/v1/classify")
    assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
    assert "busy" in refused.json["error"]
    assert asked("GET", "/v2/health/live").status == 200
    assert asked("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize(
    ("grace_s", "signals", "said"),
    [
        (60, [signal.SIGINT, signal.SIGINT], "ended at the second ctrl-C; "),
        (0, [signal.SIGTERM], "ended after 0 s; "),
    ],
)
def test_what_it_no_longer_waits_for_gets_503_and_no_traceback(
    bundle_folder: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any,
    grace_s: int, signals: list[int], said: str,
) -> None:  # fmt: skip
    lines: list[str] = []
    statuses: list[int] = []
    listens, began, may_end = threading.Event(), threading.Event(), threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("serving at"):
            listens.set()

    def classify(*_: Any) -> Any:
        began.set()
        may_end.wait(60)

    def port() -> int:
        assert listens.wait(60)
        return int(lines[-1].rsplit(":", 1)[1])

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port(), timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/classify", b"an image")
            statuses.append(connection.getresponse().status)
        may_end.set()

    def interrupt() -> None:
        address = ("127.0.0.1", port())
        assert began.wait(60)
        for number in signals:
            os.kill(os.getpid(), number)
            with contextlib.suppress(ConnectionError):  # it listens until it has seen the signal
                while True:
                    socket.create_connection(address, 60).close()
                    time.sleep(0.01)

    monkeypatch.setenv("MATE_EDGE_STATE", str(state))
    monkeypatch.setattr(serving, "GRACE_S", grace_s)
    monkeypatch.setattr(Model, "classify", classify)
    threads = [threading.Thread(target=target) for target in (ask, interrupt)]
    for thread in threads:
        thread.start()
    serving.serve(options_of(bundle_folder), say)
    for thread in threads:
        thread.join()
    assert statuses == [503]
    assert lines[-1] == said + "accepted requests that got 503: 1"
    assert "Traceback" not in caplog.text


def options_of(bundle: Path) -> serving.ServeOptions:
    """Return the options of `mate-edge serve BUNDLE --port 0`."""
    return serving.ServeOptions(
        bundles=[bundle], repository=None, host="127.0.0.1", port=0, allow_hosts=[],
        token_file=None, max_queue=64, max_mb=32, read_timeout_s=10, max_ms=None, policy=None,
        engine=None, threads=1, workers=1,
    )  # fmt: skip
