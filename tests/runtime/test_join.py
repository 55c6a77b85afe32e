"""Which borders between segments are blocked, and what is added in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from two_segments import WIDTH, conv, other, run, two_segments

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.runtime.engines.blocked import blocked_path, channels_of_block
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from mate_edge.runtime.join import keep_blocked

pytestmark = pytest.mark.skipif(
    not channels_of_block(), reason="onnxruntime computes on no blocks on this CPU"
)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("first", "width", "is_blocked", "in_place"),
    [
        ([other("Relu", "c", "features")], WIDTH, True, False),
        ([conv("c", "d", "wide"), other("Add", "d", "z", "features")], WIDTH, True, True),
        (
            [conv("c", "d", "wide"), other("Add", "z", "d", "e"), other("Relu", "e", "features")],
            WIDTH, True, True,
        ),
        # the last convolution reads what is added to it, too
        ([other("Add", "c", "z", "features")], WIDTH, True, False),
        # so does the head, when it may be overwritten already
        (
            [conv("c", "d", "wide"), other("Add", "d", "z", "features"),
             other("GlobalMaxPool", "z", "pooled from")],
            WIDTH, True, False,
        ),
        # the head reads [n, C, H, W]
        (
            [other("Relu", "c", "features"), other("Softsign", "features", "pooled from")],
            WIDTH, False, False,
        ),
        # no whole number of blocks
        (
            [conv("c", "d", "wide"), other("Add", "d", "z", "features"),
             conv("c", "pooled from", "wide")],
            WIDTH + 4, False, False,
        ),
    ],
)  # fmt: skip
def test_a_border_is_blocked_where_nothing_else_is_done_with_the_features(
    first: list[Any],
    width: int,
    is_blocked: bool,
    in_place: bool,
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    small = two_segments(tmp_path, bundle, first, width)
    made = keep_blocked(small, False, print)
    assert made.borders == (is_blocked,)
    assert [one.in_place is not None for one in made.segments] == (
        [in_place, False] if is_blocked else []
    )
    shape = (5, *small.manifest.segments[0].input.shape)
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    plain = OnnxRuntimeEngine(small, 1, blocked=lambda bundle: None)
    with plain, OnnxRuntimeEngine(small, 1) as ours:
        for batch in (images, images[:1], images[1:2]):
            for one, same in zip(run(plain, batch), run(ours, batch), strict=True):
                assert np.array_equal(one, same)


SHORTCUT = [conv("features", "d", "wide"), conv("d", "e", "wide")]


@pytest.mark.parametrize(
    "second",
    [
        [*SHORTCUT, other("Add", "e", "features", "pooled from")],
        [*SHORTCUT, other("Add", "features", "e", "f"), other("Relu", "f", "pooled from")],
        [other("Relu", "features", "r"), conv("r", "e", "wide"),
         other("Add", "e", "features", "pooled from")],
    ],
)  # fmt: skip
def test_a_shortcut_that_begins_at_a_border_is_added_on_blocks_too(
    second: list[Any], bundle: Bundle, tmp_path: Path
) -> None:
    small = two_segments(tmp_path, bundle, [other("Relu", "c", "features")], second=second)
    assert keep_blocked(small, False, print).borders == (True,)
    graph = onnx.load(blocked_path(small, 2)).graph
    assert {"Add", "ReorderInput", "MaxPool"}.isdisjoint(node.op_type for node in graph.node)
    shape = (5, *small.manifest.segments[0].input.shape)
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    plain = OnnxRuntimeEngine(small, 1, blocked=lambda bundle: None)
    with plain, OnnxRuntimeEngine(small, 1) as ours:
        for batch in (images, images[:1]):
            for one, same in zip(run(plain, batch), run(ours, batch), strict=True):
                np.testing.assert_allclose(one, same, atol=1e-5 * np.abs(one).max())
