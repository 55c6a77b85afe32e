"""What each policy buys at one budget, and what a certified risk costs: validation and test images.

    python benchmarks/policies.py [--run FOLDER] [--budgets 1.05,1.1,1.15] [--out FILE.csv]

Takes a finished run, or trains resnet8 on Fashion-MNIST. Temperatures and thresholds are chosen on
one half of the validation images; accuracy and mean FLOPs are counted on the other half, and then
once on the run's test images. Budgets are multiples of exit 1's FLOPs, the same for all policies.
The differences come with a 95 % interval, paired by image, since the policies answer most images
alike. Nothing is timed here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from trained import find_or_train

from mate_edge import files
from mate_edge.decide.calibrate import Calibrated, Calibration
from mate_edge.decide.policy import THRESHOLDS, Patience, Policy
from mate_edge.decide.simulate import Outcome, simulate
from mate_edge.decide.softmax import Labels, Logits
from mate_edge.decide.tune import losses
from mate_edge.errors import UsageError
from mate_edge.report.text import count, percent, print_table
from mate_edge.runs import read_flops, read_outputs
from mate_edge.train.options import Options

RISKS = (("worse", 0.01, 0.05), ("worse", 0.02, 0.05), ("differs", 0.05, 0.05),
         ("worse", 0.01, None))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--budgets", default="1.05,1.1,1.15")
    parser.add_argument("--out", type=Path, default=Path("benchmark-policies.csv"))
    arguments = parser.parse_args()
    options = Options(data="fashion-mnist", arch="resnet8", epochs=arguments.epochs)
    folder, run = find_or_train(arguments.run, Path("benchmark-policies/run"), options)
    outputs: dict[str, Any] = read_outputs(folder, run)
    flops = read_flops(folder, run)
    validation = outputs["val_logits"].astype(np.float32), outputs["val_labels"].astype(np.int64)
    test = outputs["test_logits"].astype(np.float32), outputs["test_labels"].astype(np.int64)
    print(describe("numpy"))
    last = test[0][:, -1].argmax(-1) == test[1]
    print(
        f"{run.arch} on {Path(run.data).name}, {run.method}, seed {run.seed}: "
        f"{len(validation[1])} validation images, half of them held back, {len(test[1])} test "
        f"images; last exit {percent(float(last.mean()))} % on test, {count(flops[-1])} FLOPs; "
        f"exit 1 {count(flops[0])}"
    )
    rows: list[dict[str, object]] = []
    for multiple in map(float, arguments.budgets.split(",")):
        for kind in THRESHOLDS:
            found = Calibration(*validation, flops, kind).within_budget(multiple * flops[0], "")
            rows.append(_row(f"{multiple:g} x exit 1", kind, found, test, flops))
    temperatures = Calibration(*validation, flops).temperatures
    for patience in range(2, len(flops) + 1):
        policy = Patience(patience, temperatures)
        rows.append(_patience(policy, Calibration(*validation, flops), test, flops))
    _print("at equal budgets", rows)
    certified = []
    for loss, epsilon, delta in RISKS:
        for kind in THRESHOLDS:
            try:
                found = Calibration(*validation, flops, kind).within_risk(epsilon, delta, loss)
            except UsageError as error:
                print(f"{kind}: {error}")
                continue
            goal = f"{loss} <= {epsilon:g}, " + ("mean" if delta is None else f"delta {delta:g}")
            row = _row(goal, kind, found, test, flops)
            assert found.guarantee is not None
            lost = losses(simulate(found.policy, test[0]).predictions, *test)[loss].mean()
            row |= {"lost held back %": percent(found.guarantee.losses / found.guarantee.n),
                    "lost on test %": percent(float(lost))}  # fmt: skip
            certified.append(row)
    _print("certified", certified)
    files.write_csv(arguments.out, rows)
    files.write_csv(arguments.out.with_suffix(".certified.csv"), certified)
    print(f"written: {arguments.out}, {arguments.out.with_suffix('.certified.csv')}")


def _row(
    goal: str, kind: str, found: Calibrated, test: tuple[Logits, Labels], flops: tuple[int, ...]
) -> dict[str, object]:
    return _figures(goal, kind, found.policy, found.outcome, found.labels, test, flops)


def _patience(
    policy: Patience,
    calibration: Calibration,
    test: tuple[Logits, Labels],
    flops: tuple[int, ...],
) -> dict[str, object]:
    outcome = simulate(policy, calibration.logits)
    name = f"patience-{policy.patience}"
    return _figures("as it falls", name, policy, outcome, calibration.labels, test, flops)


def _figures(
    goal: str,
    kind: str,
    policy: Policy,
    held: Outcome,
    held_labels: Labels,
    test: tuple[Logits, Labels],
    flops: tuple[int, ...],
) -> dict[str, object]:
    logits, labels = test
    tested = simulate(policy, logits)
    last = logits[:, -1].argmax(-1) == labels
    drops = last.astype(np.float64) - (tested.predictions == labels)
    return {
        "goal": goal,
        "policy": kind,
        "held back %": percent(held.accuracy(held_labels)),
        "MFLOPs": f"{held.mean_cost(flops) / 1e6:.2f}",
        "test %": percent(tested.accuracy(labels)),
        "test MFLOPs": f"{tested.mean_cost(flops) / 1e6:.2f}",
        "below last": percent(float(drops.mean())),
        "± 95 %": percent(1.96 * float(drops.std()) / len(drops) ** 0.5),
    }


def _print(title: str, rows: list[dict[str, object]]) -> None:
    print_table(title, list(rows[0]), [[str(value) for value in row.values()] for row in rows])


if __name__ == "__main__":
    main()
