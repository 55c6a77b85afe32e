"""A new version beside the one that serves: verified, switched to in one step, and back."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with tritonclient.InferenceServerClient(f"127.0.0.1:{server.port}") as found:
        yield found


@pytest.fixture(scope="module")
def second(repository: Path) -> Iterator[Path]:
    """Version 2 of `other`, put beside version 1 while the server runs: its classes are renamed."""
    folder = Path(shutil.copytree(repository / "other" / "1", repository / "other" / "2"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["classes"] = [f"new {name}" for name in manifest["classes"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    yield folder
    shutil.rmtree(folder)


def label(client: Any, **options: Any) -> str:
    frame = tritonclient.InferInput("frames", [1, 8, 8, 3], "UINT8")
    frame.set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
    found: bytes = client.infer("other", [frame], **options).as_numpy("label")[0]
    return found.decode()


def test_a_new_version_takes_over_under_load_and_going_back_is_one_call(
    client: Any, server: Any, second: Path
) -> None:
    old = label(client)
    failures: list[Exception] = []
    seen: list[str] = []
    done = threading.Event()

    def ask() -> None:
        with tritonclient.InferenceServerClient(f"127.0.0.1:{server.port}") as own:
            while not done.is_set():
                try:
                    seen.append(label(own))
                except Exception as error:
                    failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_for(old, seen)
        states = {one["version"]: one["state"] for one in index(client)}
        assert states == {"1": "READY", "2": "UNAVAILABLE"}
        client.load_model("other")
        wait_for(f"new {old}", seen)
        assert label(client) == f"new {old}"
        assert client.get_model_metadata("other")["versions"] == ["2"]
        with pytest.raises(tritonclient.InferenceServerException, match="2 does"):
            label(client, model_version="1")
        states = {one["version"]: one["state"] for one in index(client)}
        assert states == {"1": "UNAVAILABLE", "2": "READY"}
        client.load_model("other", query_params={"version": "1"})
        assert label(client, model_version="1") == old
    finally:
        done.set()
        asking.join()
        client.load_model("other", query_params={"version": "1"})
    assert not failures
    assert set(seen) == {old, f"new {old}"}
    assert "other version 2: verifying with its golden inputs" in server.log.read_text()


def wait_for(answer: str, seen: list[str]) -> None:
    until = time.monotonic() + 30
    while answer not in seen:
        assert time.monotonic() < until, seen[-1:]
        time.sleep(0.01)


def index(client: Any) -> list[Any]:
    return [one for one in client.get_model_repository_index() if one["name"] == "other"]


def test_a_version_that_the_golden_inputs_refuse_never_serves(
    client: Any, server: Any, repository: Path
) -> None:
    folder = Path(shutil.copytree(repository / "other" / "1", repository / "other" / "3"))
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["preprocessing"]["mean"] = [0.9]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        reply = server.ask("POST", "/v2/repository/models/other/load", b"")
        assert reply.status == 400
        assert "other version 3 cannot be loaded" in reply.error
        assert "golden images" in reply.error
        (folder / "segments" / "1.onnx").write_bytes(b"altered")
        reply = server.ask("POST", "/v2/repository/models/other/load", b"")
        assert reply.status == 400
        assert "segments/1.onnx is" in reply.error
    finally:
        shutil.rmtree(folder)
    assert client.is_model_ready("other", "1")
    label(client)


def test_an_unloaded_model_is_gone_until_it_is_loaded(client: Any) -> None:
    client.unload_model("other")
    assert not client.is_model_ready("other")
    assert client.is_server_ready()
    assert index(client)[0]["state"] == "UNAVAILABLE"
    with pytest.raises(tritonclient.InferenceServerException, match="not loaded: load it first"):
        label(client)
    client.load_model("other", query_params={"version": "1"})
    assert client.is_model_ready("other")
    label(client)


def test_a_repository_that_makes_no_sense_is_told_to_its_owner_alone(
    client: Any, server: Any, repository: Path
) -> None:
    strange = repository / "my cats.mate"
    strange.mkdir()
    (strange / "manifest.json").touch()
    try:
        for path in ("index", "models/other/load"):
            reply = server.ask("POST", f"/v2/repository/{path}", b"")
            assert reply.status == 500
            assert reply.error == "the repository cannot be read: the server's log says why"
    finally:
        shutil.rmtree(strange)
    assert f"{strange} has no name for a model" in server.log.read_text()
    assert index(client)
