"""What `evaluate` says of a run: a table, and a picture of its curves."""

from __future__ import annotations

from io import BytesIO

from mate_edge.decide.curves import Bin, Evaluation
from mate_edge.report.text import count, percent, print_table


def print_evaluation(title: str, found: Evaluation) -> None:
    """Print accuracy and calibration of each exit, and what budgets buy."""
    rows = [
        [
            f"exit {k}",
            percent(exit_.accuracy),
            count(exit_.cumulative_flops),
            f"{exit_.temperature:.2f}",
            percent(exit_.ece),
            percent(exit_.calibrated_ece),
        ]
        for k, exit_ in enumerate(found.exits, start=1)
    ]
    headers = ["", "accuracy %", "FLOPs", "temperature", "ECE %", "calibrated ECE %"]
    print_table(f"{title}, test split", headers, rows)
    print(
        f"mean over exits {percent(found.mean_accuracy)} %, ensemble {percent(found.ensemble)} %, "
        f"overthinking {percent(found.overthinking)} %, area under accuracy over FLOPs "
        f"{percent(found.area)} %"
    )
    rows = [
        [count(point.mean_flops), percent(point.accuracy)]
        for point in found.budgeted[:: max(1, len(found.budgeted) // 8)]
    ]
    print_table("budgeted: thresholds of validation", ["mean FLOPs", "accuracy %"], rows)


def draw_evaluation(title: str, found: Evaluation) -> bytes:
    """Draw accuracy over FLOPs and each exit's reliability before and after scaling, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curve, before, after) = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    curve.plot(
        [exit_.cumulative_flops / 1e6 for exit_ in found.exits],
        [100 * exit_.accuracy for exit_ in found.exits],
        "o--",
        label="anytime: each exit for all images",
    )
    curve.plot(
        [point.mean_flops / 1e6 for point in found.budgeted],
        [100 * point.accuracy for point in found.budgeted],
        ".-",
        label="budgeted: leaving by confidence",
    )
    curve.set(xlabel="mean MFLOPs (one multiply-add = 1)", ylabel="test accuracy %", title=title)
    curve.legend(fontsize=8)
    for axes, name, calibrated in ((before, "as trained", False), (after, "by temperature", True)):
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        for k, exit_ in enumerate(found.exits, start=1):
            bins: tuple[Bin, ...] = (
                exit_.calibrated_reliability if calibrated else exit_.reliability
            )
            error = exit_.calibrated_ece if calibrated else exit_.ece
            axes.plot(
                [part.confidence for part in bins],
                [part.accuracy for part in bins],
                "o-",
                markersize=3,
                label=f"exit {k}, ECE {100 * error:.1f} %",
            )
        axes.set(xlabel="confidence", ylabel="accuracy", title=f"reliability, {name}")
        axes.legend(fontsize=8)
    for axes in (curve, before, after):
        axes.grid(alpha=0.3)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
