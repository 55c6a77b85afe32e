"""From the start to the end of a server: its token, its port, and what it has accepted."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mate_edge.errors import UsageError
from mate_edge.runtime.serve.catalog import Catalog

TOKEN = "a-token-of-the-tests"  # noqa: S105


@pytest.fixture(scope="module")
def guarded(start: Any, bundle_folder: Path, state: Path, tmp_path_factory: Any) -> Iterator[Any]:
    """A server with a token, of one bundle."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    options = (bundle_folder, "--token-file", "token", "--workers", "2", "--max-queue", "50")
    with start(folder, state, *options) as running:
        yield running


def test_a_token_guards_everything_but_probes_and_pages(guarded: Any) -> None:
    name = guarded.ask("GET", "/v1/models", headers=bearer(TOKEN)).json[0]["name"]
    asked = [
        ("GET", "/v2"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", f"/v2/models/{name}"),
        ("POST", f"/v2/models/{name}/infer"), ("POST", "/v1/classify"),
        ("POST", f"/v2/repository/models/{name}/unload"), ("GET", "/nothing"),
    ]  # fmt: skip
    for method, path in asked:
        for headers in ({}, bearer("wrong"), bearer(TOKEN + "x"), {"authorization": TOKEN}):
            reply = guarded.ask(method, path, b"", headers)
            assert reply.status == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in reply.error
            assert TOKEN not in reply.error
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json"):
        assert guarded.ask("GET", path).status == 200
    for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 7235
        headers = {"authorization": f"{scheme} {TOKEN}"}
        assert guarded.ask("GET", "/v2", headers=headers).status == 200
    assert guarded.ask("GET", "/v2", headers={"authorization": f"Basic {TOKEN}"}).status == 401
    headers = bearer(TOKEN) | {"host": "proxy.example"}  # with a token under any name
    assert guarded.ask("GET", "/v2", headers=headers).status == 200


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_port_in_use_is_said_before_any_model_is_loaded(
    cli: Any, guarded: Any, bundle_folder: Path
) -> None:
    done = cli("serve", bundle_folder, "--port", str(guarded.port))
    assert done.returncode == 2
    assert done.stderr == (
        f"mate-edge: cannot serve at 127.0.0.1:{guarded.port}: Address already in use; choose "
        "another --port\n"
    )


def test_what_was_accepted_is_answered_after_sigterm(guarded: Any) -> None:
    buffer = io.BytesIO()
    Image.new("1", (6000, 6000)).save(buffer, "PNG")
    replies: list[Any] = []

    def ask() -> None:
        replies.append(guarded.ask("POST", "/v1/classify", buffer.getvalue(), bearer(TOKEN)))

    idle = socket.create_connection(("127.0.0.1", guarded.port))
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(replies) + accepted(guarded) < 6:
        assert time.monotonic() < until
    code = guarded.end()
    for thread in threads:
        thread.join()
    idle.close()
    assert code == 0
    assert [reply.status for reply in replies] == [200] * 6
    assert guarded.log.read_text().endswith("ended: all that was accepted is answered\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", guarded.port))


NEVER_LOADED = """
import threading
from mate_edge.cli import main
from mate_edge.runtime.serve import repository, serve

def load(folder, name, version, *rest, load=repository.load_model):
    if version == "2":
        print("loading version 2", file=__import__("sys").stderr, flush=True)
        threading.Event().wait()
    return load(folder, name, version, *rest)

repository.load_model, serve.GRACE_S = load, 1
main()
"""


def test_a_version_that_is_being_loaded_does_not_keep_it_from_ending(
    start: Any, bundle_folder: Path, state: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "models" / "digits" / "1")
    replies: list[Any] = []
    options = ("--repository", "models", "--workers", "1")
    with start(tmp_path, state, *options, program=("-c", NEVER_LOADED)) as running:
        shutil.copytree(bundle_folder, tmp_path / "models" / "digits" / "2")
        path = "/v2/repository/models/digits/load"
        asking = threading.Thread(target=lambda: replies.append(running.ask("POST", path, b"")))
        asking.start()
        while "loading version 2" not in running.log.read_text():
            assert asking.is_alive(), replies
            time.sleep(0.01)
        assert running.end() == 0
        asking.join()
        assert [reply.status for reply in replies] == [503]
        last = running.log.read_text().splitlines()[-1]
        assert last.endswith("ended after 1 s; accepted requests that got 503: 1")


def test_a_signal_ends_it_however_early_it_comes(
    start: Any, bundle_folder: Path, state: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        with start(tmp_path, state, bundle_folder) as running:
            assert running.end() == 0


def test_a_proxys_name_is_answered_to_when_it_is_allowed(
    start: Any, bundle_folder: Path, state: Path, tmp_path: Path
) -> None:
    with start(tmp_path, state, bundle_folder, "--allow-host", "proxy.example") as running:
        for host, status in (("Proxy.example:443", 200), ("other.example", 403)):
            assert running.ask("GET", "/v1/models", headers={"host": host}).status == status


def accepted(server: Any) -> int:
    """How many requests wait or are computed."""
    text = server.ask("GET", "/metrics", headers=bearer(TOKEN)).body.decode()
    return int(float(text.split("\nmate_edge_queue_accepted ")[1].split("\n")[0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "--port must lie between 0 and 65535, not 70000"),
        (["--host", "127.0.0..1"], "no address 127.0.0..1"),
        (["--host", "no.such.host.invalid"], "no address no.such.host.invalid"),
        (["--max-ms", "0"], "the deadline must be a positive number of ms, not 0"),
        (["--threads", "3000"], "--threads must lie between 1 and"),
        (["--workers", "0"], "--workers must lie between 1 and 256, not 0"),
        (["--workers", "100000"], "--workers must lie between 1 and 256, not 100000"),
        (["--max-mb", "nan"], "--max-mb must be a positive number up to 1e+09, not nan"),
        (["--max-mb", "1e303"], "--max-mb must be a positive number up to 1e+09, not 1e+303"),
        (["--token-file", "missing"], "missing is missing"),
        (["--token-file", "empty"], "empty must hold a token"),
        (["--repository", "missing"], "cannot read the repository missing"),
        (["--repository", "."], "takes NAME/1/ or NAME.mate"),
        (["--policy", "ballanced"], "Did you mean balanced?"),
        (["missing.mate"], "there is no bundle folder missing.mate"),
    ],
)
def test_a_mistake_at_the_start_is_one_line(
    start: Any, typed: Any, own_bundle: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "empty").touch()
    own_bundle.rename(tmp_path / "own")  # no model of a repository
    named = any(option in ("--repository", "missing.mate") for option in options)
    done = typed("serve", *([] if named else ["own"]), "--port", "0", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_repository_is_read_as_documented(tmp_path: Path) -> None:
    for folder in ("cats.mate", "dogs/1", "dogs/12", "dogs/next", "dogs/0", ".hidden/1", "empty"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "manifest.json").touch()
    for copied in ("dogs/3", "birds.mate"):  # being copied: without its manifest yet
        (tmp_path / copied).mkdir()
    assert Catalog([], tmp_path).models() == {
        "cats": {1: tmp_path / "cats.mate"},
        "dogs": {1: tmp_path / "dogs" / "1", 12: tmp_path / "dogs" / "12"},
    }


def test_a_bundle_is_called_by_the_last_name_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cats.mate"
    folder.mkdir()
    link = tmp_path / "current"
    link.symlink_to("cats.mate")
    assert Catalog([folder, link]).models() == {"cats": {1: folder}, "current": {1: link}}
    monkeypatch.chdir(folder)
    assert list(Catalog([Path()]).models()) == ["cats"]
    (folder / "segments").mkdir()
    monkeypatch.chdir(folder / "segments")
    assert list(Catalog([Path("..")]).models()) == ["cats"]


def test_what_cannot_be_read_in_a_repository_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("cats.mate", "dogs/1", "dogs/2", "link", "lost+found"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "manifest.json").touch()

    def deny(method: str, denied: str) -> None:
        """As the system does, but for root."""
        allowed = getattr(Path, method)

        def call(path: Path) -> Any:
            if path == tmp_path / denied:
                raise PermissionError(13, "Permission denied")
            return allowed(path)

        monkeypatch.setattr(Path, method, call)

    deny("is_dir", "link")
    deny("is_file", "dogs/2/manifest.json")
    deny("iterdir", "lost+found")
    assert Catalog([], tmp_path).models() == {
        "cats": {1: tmp_path / "cats.mate"},
        "dogs": {1: tmp_path / "dogs" / "1"},
    }
    for folder in ("link", "dogs/2", "lost+found"):
        assert f"{tmp_path / folder} is left out: Permission denied" in caplog.text
    deny("iterdir", ".")
    with pytest.raises(UsageError, match="cannot read the repository"):
        Catalog([], tmp_path).models()
