"""Real servers, each a process of its own, and what asks them."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pytest

PACKAGES = ("starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, which must tell nothing of the server's inside."""
        assert self.status >= 400
        assert self.headers["content-type"] == "application/json"
        found = self.json
        assert set(found) == {"error"}
        text: str = found["error"]
        assert text
        for secret in (
            "Traceback",
            'File "',
            "site-packages",
            str(Path.home()),
            gettempdir(),
            ".py",
        ):
            assert secret not in text, text
        return text


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Reply(found.status, names, found.read())
        finally:
            connection.close()

    def infer(self, name: str, document: Any, **headers: str) -> Reply:
        return self.ask("POST", f"/v2/models/{name}/infer", json.dumps(document), headers)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@contextmanager
def started(
    folder: Path,
    state: Path,
    *options: str | Path,
    program: Sequence[str] = ("-m", "mate_edge"),
    **variables: str,
) -> Iterator[Server]:
    """Run `mate-edge serve` in `folder` until the block ends."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", *map(str, options)],
            cwd=folder,
            env={**os.environ, "MATE_EDGE_STATE": str(state), **variables},
            stderr=stderr,
            text=True,
        )
        try:
            port = None
            while port is None:
                assert process.poll() is None, log.read_text()
                port = re.search(r"serving at http://127.0.0.1:(\d+)", log.read_text())
                time.sleep(0.02)
            yield Server(process, int(port[1]), log)
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Server]]:
    """Run a server of one's own; see `started`."""
    for package in PACKAGES:
        pytest.importorskip(package, reason="the extra serve is not installed")
    return started


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device state of all servers: what was verified and measured once is so for all."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def repository(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `digits`, and `other` in two versions, both of the same network."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(bundle_folder, folder / "digits.mate")
    shutil.copytree(bundle_folder, folder / "other" / "1")
    return folder


@pytest.fixture(scope="session")
def server(start: Any, repository: Path, state: Path) -> Iterator[Server]:
    """One worker, two may wait: what is refused is refused soon."""
    limits = ("--workers", "1", "--max-queue", "2", "--max-mb", "1", "--read-timeout", "30")
    with start(repository.parent, state, "--repository", repository, *limits) as running:
        yield running


@pytest.fixture(scope="session")
def images(golden: dict[str, np.ndarray]) -> np.ndarray:
    """The golden inputs, uint8 [n, H, W, C]."""
    return golden["images"]
