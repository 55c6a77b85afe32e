"""How a data set is split, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.errors import UsageError
from mate_edge.train.data import load_dataset
from mate_edge.train.data.dataset import channel_statistics
from mate_edge.train.data.splits import choose_some, split_off


def test_digits_are_split_into_three_parts_without_overlap() -> None:
    dataset = load_dataset("digits")
    parts = [dataset.train, dataset.val, dataset.test]
    counts = [len(part.labels) for part in parts]
    assert sum(counts) == 1797
    assert counts[2] == pytest.approx(360, abs=2)
    assert counts[1] == pytest.approx(144, abs=2)
    for part in parts:
        assert set(part.labels) == set(range(10))
    again = load_dataset("digits")
    assert np.array_equal(dataset.test.plain([0], dataset.preprocessing),
                          again.test.plain([0], again.preprocessing))  # fmt: skip


@given(counts=st.lists(st.integers(10, 60), min_size=2, max_size=6))
def test_a_split_takes_the_same_share_of_each_class(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = split_off(labels)
    assert chosen.sum() == pytest.approx(len(labels) / 10, abs=1)
    for label, count in enumerate(counts):
        assert abs(chosen[labels == label].sum() - count / 10) <= 1


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_a_split_leaves_an_image_of_every_class(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    assert set(labels[~split_off(labels)]) == set(range(len(counts)))


@given(data=st.data(), counts=st.lists(st.integers(1, 30), min_size=2, max_size=8))
def test_some_images_are_the_same_share_of_each_class(
    data: st.DataObject, counts: list[int]
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    count = data.draw(st.integers(len(counts), len(labels)))
    chosen = choose_some(labels, count)
    seats = np.bincount(labels[chosen], minlength=len(counts))
    assert seats.sum() == count
    assert seats.min() >= 1
    quotients = [(k + 0.5) / n for n, s in zip(counts, seats, strict=True) for k in range(1, s)]
    refused = [(s + 0.5) / n for n, s in zip(counts, seats, strict=True) if s < n]
    assert max(quotients, default=0) <= min(refused, default=1), "no seat would be fairer elsewhere"


def test_some_images_of_even_classes_are_as_many_of_each() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))
    assert np.bincount(labels[choose_some(labels, 120)]).tolist() == [12] * 10
    assert choose_some(labels, 500).all()
    uneven = np.repeat([0, 1], [900, 100])
    assert np.bincount(uneven[choose_some(uneven, 50)]).tolist() == [45, 5]


def test_more_images_only_add_to_fewer() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    smaller = choose_some(labels, 3)
    for count in range(4, 76):
        larger = choose_some(labels, count)
        assert larger[smaller].all()
        smaller = larger


def test_training_on_some_images_leaves_validation_test_and_preprocessing_whole() -> None:
    whole, some = load_dataset("digits"), load_dataset("digits", train_images=100)
    assert len(some.train.labels) == 100
    assert some.note == f"100 of {len(whole.train.labels)} training images are used"
    assert some.preprocessing == whole.preprocessing
    for one, other in ((whole.val, some.val), (whole.test, some.test)):
        assert one.identity() == other.identity()
    assert some.fingerprint() != whole.fingerprint()
    for count in (9, -1, len(whole.train.labels) + 1):
        with pytest.raises(UsageError, match=f"between 10, one a class, and .* not {count}"):
            load_dataset("digits", train_images=count)


@pytest.mark.parametrize("shape", [(10, 5, 5, 3), (2100, 3, 3, 2)], ids=["few", "in parts"])
def test_channel_statistics_are_mean_and_deviation(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 1, 2)), atol=1e-4)
