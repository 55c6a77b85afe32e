"""Do an engine's logits agree with the exported network's, and how far may they lie apart?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mate_edge.decide.policy import Policy
from mate_edge.decide.simulate import simulate
from mate_edge.decide.softmax import Logits
from mate_edge.names import look_up
from mate_edge.report.verification import Comparison, PointVerification
from mate_edge.runtime.engines import ON_CPU


@dataclass(frozen=True)
class Tolerance:
    """Shares of the largest logit: on a CPU, and on any GPU engine."""

    cpu: float
    gpu: float


TOLERANCES: dict[str, Tolerance] = {
    # CPU: the same sums in another order, a few times the 6e-8 of one rounding. GPU: TensorRT may
    # multiply in TF32, whose 11 bits round each factor by up to 5e-4, but adds and stores in fp32.
    "fp32": Tolerance(cpu=1e-4, gpu=5e-3),
    # Eleven bits too, but every tensor between two kernels is rounded again, and where an engine
    # fuses kernels it rounds elsewhere: the errors of ten to fifty layers add up to about 1e-2.
    "fp16": Tolerance(cpu=2e-2, gpu=2e-2),
    # A value beside the border between two of 255 steps falls to the other side after any rounding,
    # and is then off by 1/127 of its tensor's largest: resnet8's logits move by 1.3e-2 when its
    # input is rounded to 11 bits. A GPU rounds every layer's sums so, a CPU only sums elsewhere
    # (and OpenVINO fuses other layers than onnxruntime: 5e-3 on resnet8).
    "int8": Tolerance(cpu=5e-2, gpu=1e-1),
}


def tolerance(precision: str, engine: str) -> float:
    """Return the tolerance of a bundle's precision on the engine of that name.

    Raises:
        UsageError: an unknown precision.
    """
    found = look_up("precision", precision, TOLERANCES)
    return found.cpu if engine in ON_CPU else found.gpu


def compare(found: Logits, expected: Logits, allowed: float) -> Comparison:
    """Compare logits [n, classes] with the reference's; see `Comparison`."""
    n = len(expected)
    if not np.isfinite(found).all():
        return Comparison(
            images=n, agree=0, excused=0, difference=None, share=None, allowed=allowed
        )
    largest = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    best_two = np.sort(expected, axis=-1)[:, -2:]
    hesitates = best_two[:, 1] - best_two[:, 0] <= allowed * largest
    same = found.argmax(axis=-1) == expected.argmax(axis=-1)
    return Comparison(
        images=n,
        agree=int(same.sum()),
        excused=int((~same & hesitates).sum()),
        difference=difference,
        share=difference / largest if largest else difference,
        allowed=allowed,
    )


def compare_exits(
    policy: Policy, found: Logits, expected: Logits, allowed: float
) -> tuple[PointVerification, list[str]]:
    """Compare the exits that a policy takes on logits [n, K, classes] with the reference's.

    An image is excused when the reference's own choice, at the exit where the two part, turns as
    its best logit moves by the tolerance.

    Returns:
        The figures, and a note for each image that takes another exit without excuse.
    """
    taken, wanted = simulate(policy, found).exits, simulate(policy, expected).exits
    wrong, excused = [], 0
    for row in np.flatnonzero(taken != wanted):
        k = int(min(taken[row], wanted[row]))
        shift = allowed * float(np.abs(expected[:, k - 1]).max())
        choices = set()
        for moved in (-shift, shift):
            logits = expected[row : row + 1, :k].copy()
            logits[0, -1, logits[0, -1].argmax()] += moved
            choices.add(bool(policy.decide(logits)[0][0]))
        if len(choices) == 2:
            excused += 1
        else:
            wrong.append(f"image {row} exit {taken[row]} instead of {wanted[row]}")
    agree = int((taken == wanted).sum())
    return PointVerification(images=len(expected), agree=agree, excused=excused), wrong
