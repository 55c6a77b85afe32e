"""What Prometheus reads, of the real predictor and of made-up answers."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from mate_edge.decide.drift import Drift
from mate_edge.errors import BundleError, UsageError
from mate_edge.runtime.prediction import HaltedBy, Prediction
from mate_edge.runtime.predictor import Predictor

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from mate_edge.runtime.metrics import Metrics


def answer(exit_: int, ms: float, halted_by: HaltedBy = "policy", late: bool = False) -> Prediction:
    return Prediction(
        label="a", index=0, confidence=0.5, relative=[0.5, 0.5],
        exit=exit_, halted_by=halted_by, elapsed_ms=ms, decode_ms=0.0, preprocess_ms=0.0,
        segment_ms=(ms,), deadline_missed=late,
    )  # fmt: skip


def lines(metrics: Metrics) -> list[str]:
    return metrics.text().decode().splitlines()


def test_answers_are_counted_by_model_exit_and_reason() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.add("cats", answer(1, 0.4))
    metrics.add("cats", answer(2, 7.0, "deadline", late=True))
    metrics.add("dogs", answer(2, 30.0, "last-exit"))
    metrics.add_failure("dogs")
    metrics.add_dropped("dogs", 17)
    found = lines(metrics)
    for line in (
        'mate_edge_predictions_total{exit="1",halted_by="policy",model="cats"} 3.0',
        'mate_edge_predictions_total{exit="2",halted_by="deadline",model="cats"} 1.0',
        'mate_edge_predictions_total{exit="2",halted_by="last-exit",model="dogs"} 1.0',
        'mate_edge_deadline_misses_total{exit="1",model="cats"} 0.0',
        'mate_edge_deadline_misses_total{exit="2",model="cats"} 1.0',
        'mate_edge_unreadable_images_total{model="dogs"} 1.0',
        'mate_edge_dropped_frames_total{model="dogs"} 17.0',
        'mate_edge_latency_seconds_bucket{exit="1",le="0.0002",model="cats"} 0.0',
        'mate_edge_latency_seconds_bucket{exit="1",le="0.0005",model="cats"} 3.0',
        'mate_edge_latency_seconds_bucket{exit="2",le="0.005",model="cats"} 0.0',
        'mate_edge_latency_seconds_bucket{exit="2",le="0.0075",model="cats"} 1.0',
        'mate_edge_latency_seconds_count{exit="2",model="dogs"} 1.0',
        'mate_edge_latency_seconds_sum{exit="2",model="dogs"} 0.03',
    ):
        assert line in found, line


def test_drift_and_slow_down_are_asked_for_when_the_metrics_are_read() -> None:
    def damaged() -> Drift | None:
        raise BundleError("calibration.npz is damaged")

    slow = [1.0]
    metrics = Metrics()
    metrics.watch("cats", lambda: Drift(psi=0.5, limit=0.25, samples=100), lambda: slow[0])
    metrics.watch("few", lambda: None, lambda: 1.0)
    metrics.watch("damaged", damaged, lambda: 1.0)
    slow[0] = 1.5
    found = lines(metrics)
    assert 'mate_edge_slow_down{model="cats"} 1.5' in found
    assert 'mate_edge_drift_psi{model="cats"} 0.5' in found
    assert 'mate_edge_drift_limit{model="cats"} 0.25' in found
    assert sum(line.startswith("mate_edge_drift_psi{") for line in found) == 1
    metrics.forget("cats")
    assert 'mate_edge_slow_down{model="cats"} 1.5' not in lines(metrics)


def test_a_predictors_own_figures_are_served_on_localhost(bundle_folder: Path) -> None:
    metrics = Metrics()
    with Predictor.load(bundle_folder, policy="deepest") as predictor, metrics.served(0) as port:
        metrics.watch(
            "digits", lambda: predictor.stats().drift, lambda: predictor.timing.slow_down.factor
        )
        frame = np.zeros((32, 32, 3), np.uint8)
        for _ in range(100):
            metrics.add("digits", predictor.predict(frame))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = reply.read().decode()
    assert 'mate_edge_predictions_total{exit="3",halted_by="last-exit",model="digits"} 100' in text
    assert 'mate_edge_slow_down{model="digits"}' in text
    drift = [line for line in text.splitlines() if line.startswith("mate_edge_drift_psi{")]
    assert float(drift[0].split()[-1]) > 0.25  # a hundred times the same picture


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"{port}: Address already in use"),
            Metrics().served(port),
        ):
            pass
    with pytest.raises(UsageError, match="between 0 and 65535"), Metrics().served(70_000):
        pass
