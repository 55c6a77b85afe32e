"""The figures of a report against what can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mate_edge.report.class_plots import class_accuracy
from mate_edge.report.content import make_content
from mate_edge.report.figures import CERTAIN, count_figures, reach
from mate_edge.report.gallery import MOST, choose_rows
from mate_edge.report.page import to_html
from mate_edge.report.subject import Deadline, DeviceTimes, Ending, Subject
from mate_edge.report.words import give_verdict

MakeSubject = Callable[..., Subject]

SURE, UNSURE = 0.9, 0.5
FOUR = [
    [(0, SURE), (0, SURE)],  # both right: leaves at exit 1
    [(1, SURE), (0, SURE)],  # leaves at exit 1, wrongly, where exit 2 is right: lost
    [(0, SURE), (1, SURE)],  # leaves at exit 1, rightly, where exit 2 is wrong: mended
    [(2, UNSURE), (1, SURE)],  # goes on, rightly
]
LABELS = [0, 0, 0, 1]


def test_a_point_is_counted_against_the_last_exit_image_by_image(make_subject: MakeSubject) -> None:
    found = count_figures(make_subject(FOUR, LABELS, (0.8,), unsplit_flops=150))
    point = found.points["balanced"]
    assert point.accuracy == 3 / 4
    assert (point.lost, point.mended, point.drop) == (1 / 4, 1 / 4, 0.0)
    assert point.exit_shares == (3 / 4, 1 / 4)
    assert point.mean_flops == 125
    assert point.saved == pytest.approx(1 - 125 / 150)
    assert found.ceiling == 1.5
    assert [exit_.accuracy for exit_ in found.exits] == [1 / 2, 3 / 4]
    assert found.overthinking == 1 / 4


@given(right=st.integers(0, 400), wrong=st.integers(0, 400))
def test_a_shares_interval_reaches_as_far_as_wilsons_farther_limit(right: int, wrong: int) -> None:
    n = max(right + wrong, 1)
    share = right / n
    far = reach(share, n)
    limit = share + far if share <= 0.5 else share - far
    assert (limit - share) ** 2 == pytest.approx(CERTAIN**2 * limit * (1 - limit) / n)
    assert 0 < far < 1


def test_classes_and_confusions_are_counted(make_subject: MakeSubject) -> None:
    found = count_figures(make_subject(FOUR, LABELS, (0.8,)))
    cat, dog, owl = found.classes
    assert (cat.images, dog.images, owl.images) == (3, 1, 0)
    assert cat.exit_accuracy == pytest.approx((2 / 3, 2 / 3))
    assert dog.exit_shares == (0.0, 1.0)
    assert found.confusions[0].tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    most = found.frequent[0]
    assert (most.label, most.answer, most.images) == (0, 1, (1, 1))


def times_of(*deadlines: Deadline) -> DeviceTimes:
    return DeviceTimes(
        device="a CPU",
        measured="2 rounds",
        exit_ms=(1.0, 2.0),
        unsplit_ms=1.8,
        verdict=("it pays",),
        diagnoses=(),
        deadlines=deadlines,
    )


def test_a_deadline_counts_what_is_right_and_in_time(make_subject: MakeSubject) -> None:
    # half of the rounds reach exit 2, half end at exit 1, and of these half are late even there
    endings = (Ending(1, 0, 1 / 4), Ending(1, 1, 1 / 4), Ending(2, 2, 1 / 2))
    found = count_figures(
        make_subject(FOUR, LABELS, (0.8,), times=times_of(Deadline(1.5, endings)))
    )
    (deepest,), (balanced,) = found.deadlines["deepest"], found.deadlines["balanced"]
    assert deepest.exit_shares == pytest.approx((1 / 4, 1 / 2))
    assert deepest.late == pytest.approx(1 / 4)
    assert deepest.accuracy == pytest.approx(1 / 4 * 1 / 2 + 1 / 2 * 3 / 4)
    # with the policy 3 of 4 images leave at exit 1 of their own accord
    assert balanced.exit_shares == pytest.approx((1 / 4 + 1 / 2 * 3 / 4, 1 / 2 * 1 / 4))
    assert balanced.accuracy == pytest.approx(1 / 4 * 1 / 2 + 1 / 2 * 3 / 4)
    assert found.points["balanced"].mean_ms == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("unsplit", "said"),
    [
        (200, "save 38\u00a0% of the FLOPs at the last exit's accuracy"),
        (100, "take 25\u00a0% more FLOPs than the network without them"),
    ],
)
def test_the_verdict_says_what_exits_save_or_cost(
    unsplit: int, said: str, make_subject: MakeSubject
) -> None:
    subject = make_subject(FOUR, LABELS, (0.8,), unsplit_flops=unsplit)
    assert said in give_verdict(subject, count_figures(subject)).headline


def test_the_verdict_is_in_milliseconds_where_the_device_was_benched(
    make_subject: MakeSubject,
) -> None:
    subject = make_subject(FOUR, LABELS, (0.8,), times=times_of(Deadline(3, (Ending(2, 2, 1.0),))))
    verdict = give_verdict(subject, count_figures(subject))
    assert "save 31\u00a0% of the time on this device" in verdict.headline
    assert "mate-edge bench says: it pays." in verdict.lines


def test_one_exit_has_nothing_to_save(make_subject: MakeSubject) -> None:
    content, _ = make_content(make_subject([[(0, SURE)], [(1, SURE)]], [0, 0], ()))
    assert "one exit" in content.verdict.headline
    assert b"accuracy-by-class" in to_html(content)


def test_many_classes_are_listed_where_a_matrix_could_not_be_read(
    make_subject: MakeSubject,
) -> None:
    num_classes = 150
    answers = [[((c + 1) % num_classes, SURE), (c, SURE)] for c in range(num_classes)]
    classes = tuple(f"class {c}" for c in range(num_classes))
    content, found = make_content(
        make_subject(answers, list(range(num_classes)), (0.95,), classes=classes)
    )
    page = to_html(content).decode()
    assert f"A matrix of {num_classes} classes could not be read" in page
    assert len(found.frequent) == 12
    assert page.count("<svg") < 10


def test_images_are_of_many_classes_and_of_the_kind_that_is_said(
    make_subject: MakeSubject,
) -> None:
    many = [FOUR[0]] * 30 + [[(1, SURE), (1, SURE)]] * 2 + FOUR[1:]
    labels = [0] * 30 + [1] * 2 + LABELS[1:]
    asked: list[list[int]] = []

    def pictures(indices: list[int]) -> np.ndarray:
        asked.append(list(indices))
        return np.full((len(indices), 28, 28, 1), 7, np.uint8)

    rows = choose_rows(make_subject(many, labels, (0.8,), pictures=pictures))
    tiles = {row.name: [tile.index for tile in row.tiles] for row in rows}
    assert len(asked) == 1, "all pictures are fetched at once"
    assert len(tiles["early"]) == MOST
    assert {30, 31} <= set(tiles["early"]), "both images of the rare class"
    assert tiles["lost"] == [32]
    assert tiles["mended"] == [33]
    assert tiles["late"] == [34]
    assert set(tiles["disagree"]) == {32, 33, 34}
    assert {row.name: row.count for row in rows}["early"] == 33


def test_the_hardest_class_is_looked_for_among_all_and_not_those_drawn(
    make_subject: MakeSubject,
) -> None:
    classes = tuple(f"class {c}" for c in range(50))
    right, wrong = [[(c, SURE), (c, SURE)] for c in range(50)], [(0, SURE), (0, SURE)]
    right[25] = wrong
    subject = make_subject(right, list(range(50)), (0.8,), classes)
    (plot,) = class_accuracy(subject, count_figures(subject))
    assert plot.says.startswith("The hardest class is class 25: ")
