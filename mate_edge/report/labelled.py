"""What a bundle does with a labelled folder on a device: the figures, and how they are printed."""

from __future__ import annotations

import msgspec

from mate_edge.times import Times


class PolicyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over all images.

    Attributes:
        accuracy: share of right answers.
        exit_shares: the share that left at each exit.
        mean_flops: of an image; one multiply-add = 1.
        times: from the encoded image in memory to the label.
        missed: images answered after the deadline; 0 without one.
        halted_by_deadline: images that the deadline kept from going on.
    """

    accuracy: float
    exit_shares: tuple[float, ...]
    mean_flops: float
    times: Times
    missed: int = 0
    halted_by_deadline: int = 0


class LabelledFigures(msgspec.Struct, frozen=True, kw_only=True):
    """`evaluate BUNDLE DIR`.

    Attributes:
        images: those that could be read.
        unreadable: those that could not.
        exit_accuracies: of each exit, were it to answer all images.
        policies: without a deadline.
        under_deadline: the same policies under `max_ms`; empty without one.
    """

    bundle: str
    bundle_id: str
    device: str
    data: str
    images: int
    unreadable: int
    exit_accuracies: tuple[float, ...]
    policies: dict[str, PolicyFigures]
    max_ms: float | None = None
    under_deadline: dict[str, PolicyFigures] = {}


def print_labelled(found: LabelledFigures) -> None:
    """Print accuracy per exit, then the policies without and with the deadline."""
    from mate_edge.report.text import count, percent, print_table

    def table(title: str, policies: dict[str, PolicyFigures], deadline: bool) -> None:
        some = next(iter(policies.values())).times
        headers = ["", "accuracy %", "exits' shares %", "mean FLOPs", "median ms"]
        headers += ["p90 ms"] * (some.p90_ms is not None) + ["p99 ms"] * (some.p99_ms is not None)
        headers += ["max ms"] * (some.p99_ms is None) + ["missed", "halted by it"] * deadline
        rows = []
        for name, policy in policies.items():
            times = policy.times
            tails = [ms for ms in (times.p90_ms, times.p99_ms) if ms is not None]
            tails += [times.max_ms] * (times.p99_ms is None)
            rows.append(
                [
                    name,
                    percent(policy.accuracy),
                    " ".join(f"{100 * share:.0f}" for share in policy.exit_shares),
                    count(policy.mean_flops),
                    *(f"{ms:.2f}" for ms in (times.median_ms, *tails)),
                    *[str(policy.missed), str(policy.halted_by_deadline)] * deadline,
                ]
            )
        print_table(title, headers, rows)

    rows = [[f"exit {k}", percent(share)] for k, share in enumerate(found.exit_accuracies, 1)]
    print_table(f"{found.data}, {found.images} images, on {found.device}", ["", "accuracy %"], rows)
    table("without a deadline", found.policies, deadline=False)
    if found.under_deadline:
        table(f"under a deadline of {found.max_ms:g} ms", found.under_deadline, deadline=True)
        print(
            "a deadline voids any accuracy that was stated for a policy, unless tune certified it "
            "with that deadline"
        )
    print("ms: one image, from the encoded file in memory to the label")
    if found.unreadable:
        print(f"{found.unreadable} images could not be read and are left out")
