"""What still holds of a policy's guarantee, given how it was run."""

from __future__ import annotations

from math import inf

import msgspec

from mate_edge.bundle import Guarantee
from mate_edge.decide.risk import binomial_cdf
from mate_edge.report.tuned import IN_TIME, bound, promise
from mate_edge.runtime.fingerprint import Fingerprint
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.policy import Chosen

UNLIKELY = 0.01


def standing(
    chosen: Chosen,
    max_ms: float | None,
    measured: Latencies | None,
    predictions: int,
    halted: int,
) -> str:
    """Say whether a policy carries a guarantee, and whether it holds, in one line.

    Args:
        chosen: the policy.
        max_ms: the deadline; None for none.
        measured: with a deadline: the rounds of this device that it rests on.
        predictions: how many there were.
        halted: how many of them the deadline ended.
    """
    name, guarantee = f"policy {chosen.name}", chosen.guarantee
    if guarantee is None:
        voids = "" if max_ms is None else ", and a deadline would void one"
        return f"{name} carries no guarantee{voids}"
    if max_ms is None:
        return f"{name} is guaranteed: {promise(guarantee)}"
    if guarantee.max_ms is None:
        certainty = "--mean-risk" if guarantee.delta is None else f"--delta {guarantee.delta:g}"
        return (
            f"{name} carries a guarantee, which this deadline voids: mate-edge tune --max-risk "
            f"{guarantee.epsilon:g} {certainty} --loss {guarantee.loss} --max-ms {max_ms:g}, and "
            "what else it was tuned with, certifies both together"
        )
    carries = f"{name} is certified together with a deadline of {guarantee.max_ms:g} ms"
    if max_ms < guarantee.max_ms:
        return f"{carries}: this shorter one voids the guarantee"
    if changes := _changes(guarantee, None if measured is None else measured.fingerprint):
        return f"{carries} on another device ({changes}): here nothing is guaranteed"
    now = None if measured is None else measured.created
    if not _by_these(guarantee, now):
        return (
            f"{carries}, by rounds of {guarantee.measured}, while deadlines here rest on others of "
            f"{now}: nothing is guaranteed until it is tuned by these"
        )
    if _halts_more_often(guarantee, predictions, halted):
        certified = 100 * (guarantee.halted or 0) / guarantee.n
        return (
            f"{carries}, which may end {certified:.1f} % of images and here ended "
            f"{100 * halted / predictions:.1f} %: images take longer than when certified, and the "
            "guarantee does not hold"
        )
    return f"{carries} or longer: {bound(guarantee)}; {IN_TIME}"


def certified_ms(guarantee: Guarantee | None, measured: Latencies | None) -> float:
    """Return the deadline under which, and under every longer one, a guarantee holds here.

    Args:
        guarantee: of a policy; None: it has none.
        measured: the rounds of this device that deadlines rest on; None: there are none yet.

    Returns:
        Infinity where it holds under no deadline.
    """
    if guarantee is None or guarantee.max_ms is None or measured is None:
        return inf
    if _changes(guarantee, measured.fingerprint) or not _by_these(guarantee, measured.created):
        return inf
    return guarantee.max_ms


def _by_these(guarantee: Guarantee, created: str | None) -> bool:
    """Say whether the rounds of that time certified it, as far as it tells."""
    return guarantee.measured in (None, created)


def _changes(guarantee: Guarantee, device: Fingerprint | None) -> str:
    """Name what differs between the device of the guarantee and this one; empty: nothing."""
    try:
        certified = msgspec.convert(guarantee.device, Fingerprint)
    except msgspec.ValidationError:
        return "it does not say which"
    return "unknown" if device is None else "; ".join(certified.changes(device))


def _halts_more_often(guarantee: Guarantee, predictions: int, halted: int) -> bool:
    """Say whether the deadline ends more images than chance explains."""
    share = ((guarantee.halted or 0) + 1) / (guarantee.n + 2)
    # those that one slow segment ends come together, and count as one
    independent, together = int(predictions / guarantee.effect), int(halted / guarantee.effect)
    return 1 - binomial_cdf(together - 1, independent, share) < UNLIKELY
