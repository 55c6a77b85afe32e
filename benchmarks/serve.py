"""What the server adds to the predictor, and whether it loses or mistakes anything.

    python benchmarks/serve.py [--seconds 20] [--minutes 10] [--out FOLDER]

Three questions, of untrained networks on a CPU; their times are a trained one's. The server is a
process of its own on loopback; clients keep their connections.

* latency: one client of resnet8 at 32, preprocessed images as binary tensors, policy `deepest`. In
  turns: the predictor in this process, the server asked over a plain socket, and by tritonclient.
* throughput: mobilenet_v2 at 224, in turns of two seconds: as many predictors as the server has
  workers, each in a thread of this process; and eight clients in another process.
* soak: for `--minutes`, eight clients whose answers are checked one by one, beside others that hang
  up, send too much, or send nonsense.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe, quantile
from untrained import make_bundle

from mate_edge.machine import cpu_count
from mate_edge.report.text import print_table
from mate_edge.runtime.predictor import Predictor

CLIENTS = 8
TURN_S = 2.0
HEADER = "Inference-Header-Content-Length"
POLICY = "deepest"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("benchmark-untrained"))
    arguments = parser.parse_args()
    print(describe("onnxruntime", "uvicorn", "starlette", "httptools", "uvloop", "tritonclient"))
    small = make_bundle(arguments.out, "resnet8", 32, 10)
    large = make_bundle(arguments.out, "mobilenet_v2", 224, 10)
    latency(small, arguments.seconds)
    throughput(large, arguments.seconds)
    if arguments.minutes:
        soak(small, arguments.minutes)


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Serve a bundle; yield port and process id."""
    command = [sys.executable, "-m", "mate_edge", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving at http://127.0.0.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def request(name: str, kind: str, data: np.ndarray, outputs: list[str]) -> bytes:
    """Return a whole HTTP request with a binary tensor."""
    datatype = {"images": "FP32", "frames": "UINT8"}[kind]
    document = json.dumps(
        {
            "parameters": {"policy": POLICY},
            "inputs": [
                {
                    "name": kind,
                    "shape": data.shape,
                    "datatype": datatype,
                    "parameters": {"binary_data_size": data.nbytes},
                }
            ],
            "outputs": [{"name": output} for output in outputs],
        }
    ).encode()
    length = len(document) + data.nbytes
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\n{HEADER}: {len(document)}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    return head.encode() + document + data.tobytes()


class Client:
    """A connection that is kept: the least that a client can cost."""

    def __init__(self, port: int) -> None:
        self._link = socket.create_connection(("127.0.0.1", port), 60)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, whole: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        self._link.sendall(whole)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = received[:end].decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].split("\r\n", 1)[0])
        body = received[end + 4 :]
        while len(body) < length:
            body += self._more()
        return int(head.split(" ", 2)[1]), body

    def _more(self) -> bytes:
        data = self._link.recv(65536)
        if not data:
            raise ConnectionResetError("the server hung up")
        return data

    def close(self) -> None:
        """Hang up."""
        self._link.close()


def latency(bundle: Path, seconds: float) -> None:
    """Print what one client waits for."""
    import tritonclient.http as triton

    rng = np.random.default_rng(0)
    data = rng.uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    name = bundle.stem
    whole = request(name, "images", data, ["index"])
    tensor = triton.InferInput("images", list(data.shape), "FP32")
    tensor.set_data_from_numpy(data)
    wanted = [triton.InferRequestedOutput("index")]
    with (
        Predictor.load(bundle, policy=POLICY, threads=1) as predictor,
        served(bundle) as (port, _),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as public,
    ):
        client = Client(port)
        parameters = {"policy": POLICY}
        contenders: dict[str, Callable[[], Any]] = {
            "in process": lambda: predictor.predict_inputs(data),
            "server, plain socket": lambda: client.ask(whole),
            "server, tritonclient": lambda: public.infer(
                name, [tensor], outputs=wanted, parameters=parameters
            ),
        }
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        order = list(contenders)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for contender in order:
                started = time.perf_counter_ns()
                contenders[contender]()
                times[contender].append((time.perf_counter_ns() - started) / 1e6)
            order.reverse()
    rows = []
    for contender, found in times.items():
        warm = found[len(found) // 10 :]
        added = [a - b for a, b in zip(found, times["in process"], strict=True)]
        rows.append(
            [contender, str(len(warm)), *(f"{quantile(warm, q):.2f}" for q in (0.5, 0.9, 0.99)),
             f"{median(added):+.2f}"]
        )  # fmt: skip
    print_table(
        "latency: resnet8 at 32, one client, ms",
        ["", "n", "p50", "p90", "p99", "added, p50"],
        rows,
    )


def throughput(bundle: Path, seconds: float) -> None:
    """Print what eight clients get, beside the predictor in as many threads as cores."""
    rng = np.random.default_rng(0)
    workers = cpu_count()
    rows = []
    with (
        Predictor.load(bundle, policy=POLICY, threads=1) as predictor,
        served(bundle, "--max-queue", "64") as (port, _),
    ):
        twins = [predictor, *(predictor.clone() for _ in range(workers - 1))]
        pre = predictor.manifest.preprocessing
        frame = rng.integers(0, 256, (1, pre.size, pre.size, 3), np.uint8)
        image = rng.uniform(-1, 1, (1, 3, pre.size, pre.size)).astype(np.float32)
        cases: dict[str, tuple[np.ndarray, Callable[[Predictor], object]]] = {
            "frames": (frame, lambda one: one.predict(frame[0])),
            "images": (image, lambda one: one.predict_inputs(image)),
        }
        for kind, (data, call) in cases.items():
            whole = request(bundle.stem, kind, data, ["index"])
            own, theirs = [], []
            for _ in range(max(2, round(seconds / (4 * TURN_S)))):
                own.append(in_threads(twins, call))
                theirs.append(over_http(port, whole))
            ratio = median(b / a for a, b in zip(own, theirs, strict=True))
            rows.append(
                [f"{kind}, {data.nbytes >> 10} KiB", str(len(own)), f"{median(own):.1f}",
                 f"{median(theirs):.1f}", f"{ratio:.2f}"]
            )  # fmt: skip
        for twin in twins[1:]:
            twin.close()
    print_table(
        f"throughput: mobilenet_v2 at 224, images a second, turns of {TURN_S:g} s",
        ["input", "turns", f"in process, {workers} threads", f"server, {CLIENTS} clients", "ratio"],
        rows,
    )


def in_threads(twins: list[Predictor], call: Callable[[Predictor], object]) -> float:
    """Return the images a second of predictors in threads."""
    counts = [0] * len(twins)
    until = time.monotonic() + TURN_S

    def run(number: int) -> None:
        while time.monotonic() < until:
            call(twins[number])
            counts[number] += 1

    return sum_rate(run, len(twins), counts)


def sum_rate(run: Callable[[int], None], threads: int, counts: list[int]) -> float:
    """Run threads to their end; return what they counted, a second."""
    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    began = time.monotonic()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def over_http(port: int, whole: bytes) -> float:
    """Return the answers a second that clients in another process get."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_load, args=(port, whole, answers))
    process.start()
    rate: float = answers.get(timeout=60)
    process.join()
    return rate


def _load(port: int, whole: bytes, answers: Any) -> None:
    clients = [Client(port) for _ in range(CLIENTS)]
    counts = [0] * CLIENTS
    until = time.monotonic() + TURN_S

    def run(number: int) -> None:
        while time.monotonic() < until:
            status, body = clients[number].ask(whole)
            assert status == 200, body
            counts[number] += 1

    answers.put(sum_rate(run, CLIENTS, counts))


def soak(bundle: Path, minutes: float) -> None:
    """Print whether each accepted request was answered, and rightly."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (64, 1, 32, 32, 3), np.uint8)
    with Predictor.load(bundle, policy=POLICY, threads=1) as predictor:
        expected = [(one.index, one.exit) for one in map(predictor.predict, frames[:, 0])]
    name = bundle.stem
    requests = [request(name, "frames", frame, ["index", "exit"]) for frame in frames]
    counted: Counter[str] = Counter()
    until = time.monotonic() + 60 * minutes
    with served(bundle, "--max-queue", "6", "--max-mb", "1") as (port, pid):
        before = memory_mb(pid)

        def ask(seed: int) -> None:
            chance, client = random.Random(seed), Client(port)  # noqa: S311
            while time.monotonic() < until:
                number = chance.randrange(len(requests))
                try:
                    status, body = client.ask(requests[number])
                except OSError:
                    counted["lost"] += 1
                    client = Client(port)
                    continue
                if status == 503:
                    counted["told to come again"] += 1
                    client.close()  # an early answer ends the connection
                    client = Client(port)
                    continue
                right = status == 200 and expected[number] == tuple(
                    one["data"][0] for one in json.loads(body)["outputs"]
                )
                counted["right" if right else "wrong"] += 1

        def disturb(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311
            while time.monotonic() < until:
                kind, act = chance.choice(list(DISTURBANCES.items()))
                with suppress(OSError, http.client.HTTPException):
                    act(port, chance, chance.choice(requests))
                counted[kind] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        threads += [threading.Thread(target=disturb, args=(-number,)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = memory_mb(pid)
    rows = [[what, str(count)] for what, count in sorted(counted.items())]
    rows.append(["memory before and after, MB", f"{before:.0f}, {after:.0f}"])
    print_table(f"soak: {minutes:g} minutes, {CLIENTS} clients and 3 that disturb", ["", ""], rows)
    if counted["lost"] or counted["wrong"]:
        raise SystemExit("a request was lost or answered wrongly")


def _hang_up(port: int, chance: random.Random, whole: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as link:
        link.sendall(whole[: chance.randrange(1, len(whole) + 1)])


def _send_too_much(port: int, chance: random.Random, whole: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/classify", bytes(2 * 2**20))
        assert connection.getresponse().status in (413, 503)
    finally:
        connection.close()


def _send_nonsense(port: int, chance: random.Random, whole: bytes) -> None:
    damaged = bytearray(whole)
    for _ in range(chance.randrange(1, 20)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    with socket.create_connection(("127.0.0.1", port), 10) as link:
        link.sendall(damaged)
        link.settimeout(0.05)
        link.recv(1000)


DISTURBANCES: dict[str, Callable[[int, random.Random, bytes], None]] = {
    "hung up": _hang_up,
    "sent too much": _send_too_much,
    "sent nonsense": _send_nonsense,
}


def memory_mb(pid: int) -> float:
    """Return what a process holds in memory."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
