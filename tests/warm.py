"""Processes that find the libraries imported: importing torch takes seconds, in each process anew.

A server imports what others wrote, and nothing of mate_edge. For each command it forks a process,
which gets the caller's arguments, folder, environment and streams, and the signals that end it,
imports mate_edge and runs its `main`: what `python -m mate_edge` does, without the wait.
`Warm.folder` has an executable `mate-edge`, for shells, and `warm-python`, which runs other scripts
and modules likewise.

As a script: `warm.py serve SOCKET`, and `warm.py ask SOCKET COMMAND ARGUMENTS...`.
"""

from __future__ import annotations

import array
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = (
    "numpy", "PIL.Image", "msgspec", "typer", "platformdirs", "onnxruntime",
    "torch", "torch._dynamo", "torch.export", "torch.onnx", "torchvision", "onnxscript", "onnx",
    "accelerate", "fvcore.nn", "safetensors.torch", "scipy.stats", "scipy.optimize",
    "sklearn.datasets", "matplotlib.figure", "rich.progress",
)  # fmt: skip
"""What takes long to import; those that are not installed are left out, as on a device."""


STARTS_IN_S = 300
"""How long a first command waits for the server's imports, on a slow machine with other load."""


class Warm:
    """The server of one test session, and how to ask it; it ends with the session in any case.

    Args:
        place: of another process's server; None starts one.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        if place is None:
            self.place = Path(tempfile.mkdtemp(prefix="warm-"))  # a socket's path must be short
            self._start(self.place / "socket")
        else:
            self.place = place
        self.folder = self.place / "bin"
        self.python = self.folder / "warm-python"

    def _start(self, socket: Path) -> None:
        (self.place / "bin").mkdir()
        for name in ("mate-edge", "warm-python"):
            shim = self.place / "bin" / name
            asks = f"{sys.executable} -S -E {__file__} ask {socket} {name}"
            shim.write_text(f'#!/bin/sh\nexec {asks} "$@"\n')
            shim.chmod(0o755)
        command = [sys.executable, __file__, "serve", str(socket)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def run(
        self, *arguments: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `mate-edge ARGUMENTS`; returns exit code, stdout and stderr."""
        return subprocess.run(
            [self.folder / "mate-edge", *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=STARTS_IN_S + 500,
        )

    def close(self) -> None:
        """End the server, if it is one's own."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            shutil.rmtree(self.place)


def ask(path: str, arguments: list[str]) -> int:
    """Have the server run `arguments` here, with these streams; returns the exit code."""
    request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    until = time.monotonic() + STARTS_IN_S
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.02)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        streams = array.array("i", [0, 1, 2])
        asking.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        asking.sendall(request)
        asking.shutdown(socket.SHUT_WR)
        child, _, code = asking.recv(16).partition(b"\n")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(int(child), number))
        return int(code or asking.recv(16))


def serve(path: str) -> None:
    """Import the libraries, then fork a process for each request."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        _export_once()
    gc.freeze()  # no process need look through the libraries' objects for garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that answer
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen()
    os.rename(path + ".new", path)
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _answer(asking)
        asking.close()


def keep_export_tables() -> None:
    """Let torch's exporter make its tables once: 1.7 of a small network's 3 seconds.

    It makes the same ones, of its operators and of those that it replaces by others, for each
    export, and has no option to be given them. Other versions of torch that have none go without.
    """
    with contextlib.suppress(ImportError, AttributeError):
        registration = importlib.import_module("torch.onnx._internal.exporter._registration")
        registry = registration.ONNXRegistry
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
        replaced = importlib.import_module("torch.onnx._internal.exporter._decomp")
        make = functools.cache(replaced.create_onnx_friendly_decomposition_table)
        replaced.create_onnx_friendly_decomposition_table = lambda ops: make(frozenset(ops))


def _export_once() -> None:
    """Let torch's exporter fill its tables: 4 of the 9 seconds of a first export."""
    import torch

    keep_export_tables()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).eval()
        torch.onnx.export(network, (torch.zeros(1, 1, 1, 1),), dynamo=True)


def _answer(asking: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = array.array("i")
    _, ancillary, _, _ = asking.recvmsg(1, socket.CMSG_LEN(3 * streams.itemsize))
    streams.frombytes(ancillary[0][2])
    request = b"".join(iter(lambda: asking.recv(65536), b""))
    arguments, cwd, environment = json.loads(request)
    child = os.fork()
    if child:
        asking.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        asking.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    asking.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    _run(*arguments)


def _run(command: str, *arguments: str) -> None:
    """Do as `python -m mate_edge` or `python ARGUMENTS` does, and leave with its exit code."""
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - for as long as it lives
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.argv = [command, *arguments]
    sys.path[0] = os.getcwd()
    code: object = 0
    try:
        if command == "mate-edge":
            from mate_edge.cli import main

            main()
        else:
            _run_python(*(word for word in arguments if word != "-u"))
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run_python(what: str, *arguments: str) -> None:
    if what == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *arguments]
        sys.path[0] = os.path.dirname(os.path.abspath(what))
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    serve(sys.argv[2])
