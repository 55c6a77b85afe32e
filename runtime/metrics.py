"""Prometheus metrics of predictions: of `mate-edge run --metrics-port` and of the server.

Counting a prediction takes 2 us. Drift and slow-down are asked for when somebody reads the metrics,
not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, start_http_server
from prometheus_client.registry import Collector

from mate_edge.decide.drift import Drift
from mate_edge.errors import BundleError, UsageError

if TYPE_CHECKING:
    from mate_edge.runtime.prediction import Prediction

BUCKETS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.033),
    *(0.05, 0.1, 0.2, 0.5, 1.0, 5.0),
)
"""Upper bounds of the latency histogram, seconds; 33 ms is a frame of 30 a second."""
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Watched:
    """What is asked of a model when the metrics are read.

    Attributes:
        drift: its drift, None when there are too few images; see `Stats.drift`.
        slow_down: how much slower the device is than when it was measured, 1 or more.
    """

    drift: Callable[[], Drift | None]
    slow_down: Callable[[], float]


class Metrics:
    """Counters and histograms of one process, for any number of models; any thread may call it.

    Args:
        registry: where they are registered, beside metrics of others; a new one when None.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._predictions = Counter(
            "mate_edge_predictions",
            "Images answered, by exit and by what ended them: policy, deadline or last-exit.",
            ["model", "exit", "halted_by"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "mate_edge_latency_seconds",
            "From the encoded image in memory, or the frame's arrival, to the label.",
            ["model", "exit"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._misses = Counter(
            "mate_edge_deadline_misses",
            "Answers that came after their deadline.",
            ["model", "exit"],
            registry=self.registry,
        )
        self._failures = Counter(
            "mate_edge_unreadable_images",
            "Images that could not be read, and so have no answer.",
            ["model"],
            registry=self.registry,
        )
        self._dropped = Counter(
            "mate_edge_dropped_frames",
            "Frames of a live source that a newer one replaced before they were looked at.",
            ["model"],
            registry=self.registry,
        )
        self._watched: dict[str, Watched] = {}
        self.registry.register(_Gauges(self._watched))

    def add(self, model: str, prediction: Prediction) -> None:
        """Count an answer of `model`."""
        exit_ = str(prediction.exit)
        self._predictions.labels(model, exit_, prediction.halted_by).inc()
        self._latency.labels(model, exit_).observe(prediction.elapsed_ms / 1000)
        misses = self._misses.labels(model, exit_)  # 0 misses are shown, too
        if prediction.deadline_missed:
            misses.inc()

    def add_failure(self, model: str) -> None:
        """Count an image of `model` that could not be read."""
        self._failures.labels(model).inc()

    def add_dropped(self, model: str, frames: int) -> None:
        """Count frames that were never shown to `model`."""
        self._dropped.labels(model).inc(frames)

    def watch(
        self, model: str, drift: Callable[[], Drift | None], slow_down: Callable[[], float]
    ) -> None:
        """Ask these of `model` whenever the metrics are read, in the reader's thread.

        Such as `lambda: predictor.stats().drift` and `lambda: predictor.timing.slow_down.factor`.
        Where `drift` raises BundleError, it is left out. A second call for a model replaces the
        first.
        """
        self._watched[model] = Watched(drift, slow_down)

    def forget(self, model: str) -> None:
        """No longer watch `model`; what was counted of it stays, as Prometheus wants."""
        self._watched.pop(model, None)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format, whose type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    @contextmanager
    def served(self, port: int) -> Iterator[int]:
        """Serve the metrics on 127.0.0.1 while the block runs; yield the port.

        Args:
            port: to listen on; 0 takes any that is free.

        Raises:
            UsageError: the port is no port, in use, or not allowed.
        """
        if not 0 <= port <= 65535:
            raise UsageError(f"--metrics-port must lie between 0 and 65535, not {port}")
        try:
            server, thread = start_http_server(port, LOCALHOST, self.registry)
        except OSError as error:
            raise UsageError(
                f"cannot serve metrics on {LOCALHOST}:{port}: {error.strerror}; choose another "
                "--metrics-port"
            ) from None
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Gauges(Collector):
    """What is worked out when the metrics are read."""

    def __init__(self, watched: dict[str, Watched]) -> None:
        self._watched = watched

    def collect(self) -> Iterator[GaugeMetricFamily]:
        psi = GaugeMetricFamily(
            "mate_edge_drift_psi",
            "How far exit 1's confidence has moved from the validation images', as a PSI.",
            labels=["model"],
        )
        limit = GaugeMetricFamily(
            "mate_edge_drift_limit",
            "The PSI above which the images have drifted.",
            labels=["model"],
        )
        slow_down = GaugeMetricFamily(
            "mate_edge_slow_down",
            "How much slower the device is now than when its latencies were measured.",
            labels=["model"],
        )
        for model, asked in list(self._watched.items()):
            slow_down.add_metric([model], asked.slow_down())
            try:
                drift = asked.drift()
            except BundleError:  # calibration.npz is damaged: there is nothing to compare with
                continue
            if drift is not None:
                psi.add_metric([model], drift.psi)
                limit.add_metric([model], drift.limit)
        yield from (psi, limit, slow_down)
