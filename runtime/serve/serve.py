"""`mate-edge serve`: load the models, take the port, and answer until a signal."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import uvicorn
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mate_edge import files
from mate_edge.bundle import find_bundle
from mate_edge.errors import UsageError
from mate_edge.machine import check_threads
from mate_edge.runtime.deadline import check_max_ms
from mate_edge.runtime.engines import Say
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.serve.app import App
from mate_edge.runtime.serve.catalog import Catalog
from mate_edge.runtime.serve.guard import Guard, is_loopback
from mate_edge.runtime.serve.intake import Intake
from mate_edge.runtime.serve.loading import Options, choose_workers, is_on_gpu
from mate_edge.runtime.serve.protocol import number_of
from mate_edge.runtime.serve.repository import Repository
from mate_edge.runtime.serve.transport import PatientProtocol
from mate_edge.runtime.serve.workers import Workers

TOKEN_VARIABLE = "MATE_EDGE_TOKEN"  # noqa: S105 - its name, not its value
GRACE_S = 60
"""After a signal: for what was accepted, and for clients to take their answers."""
KEEP_ALIVE_S = 65
"""Longer than what load balancers keep a connection, so that they are the ones to close it."""
MB = 2**20
LARGEST_PORT = 65535
LARGEST_NUMBER = 1e9
"""Of MB, or of seconds."""
BACKLOG = 512
MOST_WORKERS = 256


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says; see `mate-edge serve --help`."""

    bundles: Sequence[Path]
    repository: Path | None
    host: str
    port: int
    allow_hosts: Sequence[str]
    token_file: Path | None
    max_queue: int
    max_mb: float
    read_timeout_s: float
    max_ms: float | None
    policy: str | None
    engine: str | None
    threads: int
    workers: int | None


def serve(options: ServeOptions, say: Say) -> bool:
    """Serve until SIGTERM or SIGINT; what was accepted before is answered.

    Returns:
        Whether a load that nobody waits for may go on, in a thread that no signal ends.

    Raises:
        UsageError: an option that makes no sense, or a port that cannot be had.
        MateEdgeError: a model cannot be loaded.
    """
    _check(options)
    token = read_token(options.token_file)
    bundles = list(options.bundles)
    if not bundles and options.repository is None:
        bundles = [find_bundle(None)]
    catalog = Catalog(bundles, options.repository)
    listener = _bind(options.host, options.port)
    with listener:
        folders = [folder for versions in catalog.models().values() for folder in versions.values()]
        on_gpu = any(is_on_gpu(folder, options.engine) for folder in folders)
        count = options.workers or choose_workers(options.threads, on_gpu)
        threshold = number_of(options.policy)
        policy = options.policy if threshold is None else threshold
        run = Options(count, options.threads, options.engine, options.max_ms, policy)
        metrics = Metrics()
        repository = Repository(catalog, run, metrics, say)
        repository.load_all()
        workers = Workers(count, options.max_queue)
        metrics.registry.register(_Queue(workers))
        intake = Intake(int(options.max_mb * MB), options.read_timeout_s)
        host, port = listener.getsockname()[:2]
        local = is_loopback(host)
        hosts = [name.lower() for name in options.allow_hosts]
        guard = Guard(token, hosts if local and token is None else None)
        anyio.run(anyio.sleep, 0)  # or the first request waits 0.1 s until its backend is imported
        app = App(repository, workers, metrics, intake, guard)
        if token is None and not local:
            say(f"anybody who reaches {host} may use, load and unload models: give --token-file")
        _listen(listener)
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{port}"
        forced = _run(app, listener, options.read_timeout_s, lambda: say(f"serving at {where}"))
        workers.stop()
        repository.close()
    if dropped := workers.dropped + repository.dropped:
        why = "at the second ctrl-C" if forced else f"after {GRACE_S} s"
        say(f"ended {why}; accepted requests that got 503: {dropped}")
    else:
        say("ended: all that was accepted is answered")
    return repository.dropped > 0


def read_token(path: Path | None) -> str | None:
    """Return the token of a file, or of the environment variable; None: there is none.

    Raises:
        UsageError: it is empty, or not of one line of plain characters.
    """
    if path is not None:
        where = str(path)
        data = files.read_bytes(path, 4096, UsageError)
        text = data.decode("latin-1").strip()
    else:
        where, text = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "").strip()
        if TOKEN_VARIABLE not in os.environ:
            return None
    if not (text and text.isascii() and text.isprintable() and " " not in text):
        raise UsageError(f"{where} must hold a token: one line of letters, digits and signs")
    return text


def _check(options: ServeOptions) -> None:
    check_max_ms(options.max_ms)
    check_threads(options.threads)
    if not 0 <= options.port <= LARGEST_PORT:
        raise UsageError(f"--port must lie between 0 and {LARGEST_PORT}, not {options.port}")
    if options.max_queue < 0:
        raise UsageError(f"--max-queue must be 0 or more, not {options.max_queue}")
    if options.workers is not None and not 1 <= options.workers <= MOST_WORKERS:
        raise UsageError(f"--workers must lie between 1 and {MOST_WORKERS}, not {options.workers}")
    for name, number in (("--max-mb", options.max_mb), ("--read-timeout", options.read_timeout_s)):
        if not 0 < number <= LARGEST_NUMBER:
            raise UsageError(
                f"{name} must be a positive number up to {LARGEST_NUMBER:g}, not {number:g}"
            )


def _bind(host: str, port: int) -> socket.socket:
    """Take the port at once: what cannot be had is said before models are loaded.

    Raises:
        UsageError: it is in use or not allowed, or there is no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a name that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"there is no address {host}: {reason}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot serve at {host}:{port}: {error.strerror}; choose another --port"
        ) from None
    return listener


def _listen(listener: socket.socket) -> None:
    """Let clients connect; the loop that answers them starts at once.

    Raises:
        UsageError: somebody else began to listen while the models were loaded.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen: {error.strerror}; choose another --port") from None


def _run(
    app: App, listener: socket.socket, read_timeout_s: float, ready: Callable[[], object]
) -> bool:
    """Answer until a signal; return whether a second ctrl-C ended it before all was answered.

    uvicorn raises the signals again afterwards, when nothing is left to end.
    """

    class Protocol(PatientProtocol):
        limit_s = read_timeout_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        backlog=BACKLOG,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ready()
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.force_exit


class _Queue(Collector):
    """How much there is to do, when the metrics are read."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def collect(self) -> list[GaugeMetricFamily]:
        texts = {
            "waiting": ("Requests that wait for a worker.", self._workers.waiting),
            "accepted": ("Requests that wait or are computed.", self._workers.accepted),
            "limit": ("Requests that may wait.", self._workers.max_queue),
        }
        return [
            GaugeMetricFamily(f"mate_edge_queue_{name}", text, value=value)
            for name, (text, value) in texts.items()
        ]
