"""Calibration, budgets and overthinking: counts that can be checked by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.decide.curves import (
    area_under_accuracy,
    budget_policies,
    calibration_error,
    evaluate_outputs,
    label_loss,
    overthinking,
    reliability,
)
from mate_edge.decide.simulate import simulate

RNG = np.random.default_rng(0)


def outputs(n: int, k: int = 3, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that get better with depth, and labels."""
    labels = RNG.integers(0, c, n)
    logits = RNG.normal(size=(n, k, c)).astype(np.float32)
    logits[np.arange(n), :, labels] += np.linspace(0.5, 2, k, dtype=np.float32)
    return logits, labels


def test_the_calibration_error_of_a_case_by_hand() -> None:
    # three at 0.9, one of them wrong; one at 0.6, right
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], np.float32)
    bins = reliability(probabilities, np.array([0, 1, 1, 0]))
    assert [(found.count, round(found.accuracy, 3)) for found in bins] == [(1, 1.0), (3, 0.667)]
    assert calibration_error(bins) == pytest.approx(0.25 * 0.4 + 0.75 * (0.9 - 2 / 3))


def test_sure_and_right_is_perfectly_calibrated_and_every_sample_is_in_a_bin() -> None:
    assert calibration_error(reliability(np.eye(3, dtype=np.float32), np.arange(3))) == 0
    logits, labels = outputs(500)
    raised = np.exp(logits[:, 0])
    bins = reliability(raised / raised.sum(axis=-1, keepdims=True), labels)
    assert sum(found.count for found in bins) == 500


def test_the_label_loss_of_equal_logits_is_the_logarithm_of_the_classes() -> None:
    labels = np.array([0, 3, 1])
    assert label_loss(np.zeros((3, 4), np.float32), labels, 2.0) == pytest.approx(np.log(4))
    sure = np.where(np.eye(4)[labels] > 0, 30.0, 0.0).astype(np.float32)
    assert label_loss(sure, labels, 1.0) == pytest.approx(0, abs=1e-6)
    assert label_loss(-sure, labels, 10.0) == pytest.approx(3 + np.log(3 + np.exp(-3)))


def test_overthinking_counts_what_an_earlier_exit_knew() -> None:
    right, wrong = [5.0, 0.0], [0.0, 5.0]
    logits = np.array([[right, wrong], [wrong, right], [right, right], [wrong, wrong]], np.float32)
    assert overthinking(logits, np.zeros(4, np.int64)) == 0.25


def test_the_area_under_a_straight_line_is_its_middle() -> None:
    assert area_under_accuracy((10, 20, 40), (0.5, 0.6, 0.8)) == pytest.approx(0.65)
    assert area_under_accuracy((7,), (0.3,)) == 0.3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_area_lies_between_the_worst_and_the_best_exit(accuracies: list[float]) -> None:
    flops = tuple(int(f) for f in np.cumsum(np.arange(1, len(accuracies) + 1)))
    area = area_under_accuracy(flops, tuple(accuracies))
    assert min(accuracies) - 1e-12 <= area <= max(accuracies) + 1e-12


def test_the_budgets_go_from_nearly_all_at_the_first_exit_to_nearly_all_at_the_last() -> None:
    logits, _ = outputs(1000)
    shares = [
        simulate(policy, logits).exit_shares(3) for policy in budget_policies(logits, (1, 1, 1))
    ]
    assert shares[0][0] == pytest.approx(0.99, abs=0.005)
    assert shares[-1][2] == pytest.approx(0.99, abs=0.005)
    middle = shares[len(shares) // 2]
    assert middle == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=0.005)


def test_an_evaluation_agrees_with_plain_counting() -> None:
    val_logits, val_labels = outputs(800)
    logits, labels = outputs(900)
    found = evaluate_outputs(val_logits, val_labels, logits, labels, (10, 20, 30))
    accuracies = [(logits[:, k].argmax(-1) == labels).mean() for k in range(3)]
    assert [exit_.accuracy for exit_ in found.exits] == pytest.approx(accuracies)
    assert found.mean_accuracy == pytest.approx(np.mean(accuracies))
    assert found.ensemble == pytest.approx((logits.mean(1).argmax(-1) == labels).mean())
    flops = [point.mean_flops for point in found.budgeted]
    assert flops == sorted(flops)
    assert 10 <= flops[0] < 11
    assert 29 < flops[-1] <= 30
    assert all(0 <= exit_.calibrated_ece <= 1 for exit_ in found.exits)


def test_the_temperature_repairs_logits_that_are_too_large() -> None:
    val_logits, val_labels = outputs(4000)
    logits, labels = outputs(4000)
    found = evaluate_outputs(5 * val_logits, val_labels, 5 * logits, labels, (1, 2, 3))
    # the outputs' log-odds are their margin times the shift, so the truth is T = 5 / shift
    for exit_, shift in zip(found.exits, np.linspace(0.5, 2, 3), strict=True):
        assert exit_.temperature == pytest.approx(5 / shift, rel=0.15)
        assert exit_.calibrated_ece < exit_.ece / 3


def test_one_exit_has_one_policy_for_every_budget() -> None:
    logits, labels = outputs(50, k=1)
    found = evaluate_outputs(logits, labels, logits, labels, (5,))
    assert {point.mean_flops for point in found.budgeted} == {5.0}
    assert found.area == found.exits[0].accuracy
