"""`mate-edge tune`: from a bundle's validation logits to an operating point under a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle, OperatingPoint
from mate_edge.decide.calibrate import Calibrated, Calibration
from mate_edge.decide.drift import FEWEST, count_confidences
from mate_edge.decide.policy import NEVER, THRESHOLDS
from mate_edge.decide.risk import check_levels
from mate_edge.decide.rounds import design_effect
from mate_edge.decide.tune import FEW_SAMPLES, Loss
from mate_edge.errors import UsageError
from mate_edge.files import shown
from mate_edge.names import look_up
from mate_edge.report.tuned import TunedPoint
from mate_edge.runtime.build_command import build_if_needed
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.deadline import LatencyTable, check_max_ms, check_reachable
from mate_edge.runtime.engines import Say, choose_engine, make_engine
from mate_edge.runtime.labelled import Recorded, record_logits
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.points import check_name, check_out, keep_point, kept_point, stored_names
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.replay import ended_by_one, exits_at_least
from mate_edge.times import now_utc

DEFAULT_NAME = "tuned"
DEFAULT_DELTA = 0.05
LOSSES: dict[str, Loss] = {"worse": "worse", "differs": "differs"}


@dataclass(frozen=True)
class Goal:
    """What the thresholds are to reach: exactly one of the first four.

    Attributes:
        max_drop: points of accuracy below the last exit, on the search half.
        max_risk: a share in (0, 1): the risk to certify.
        budget_flops: the mean FLOPs of an image, at most.
        budget_ms: the mean ms of an image on this device, at most.
        delta: with `max_risk`: the chance of being wrong about it; None means 0.05.
        mean_risk: with `max_risk`: bound the mean risk only, by conformal risk control.
        loss: with `max_risk`: a name in `LOSSES`; None means `worse`.
        max_ms: with `max_risk`: a deadline to certify together with the policy.

    Raises:
        UsageError: no goal, two goals, or an option that does not go with the goal.
    """

    max_drop: float | None = None
    max_risk: float | None = None
    budget_flops: float | None = None
    budget_ms: float | None = None
    delta: float | None = None
    mean_risk: bool = False
    loss: str | None = None
    max_ms: float | None = None

    def __post_init__(self) -> None:
        goals = (self.max_drop, self.max_risk, self.budget_flops, self.budget_ms)
        if sum(goal is not None for goal in goals) != 1:
            raise UsageError(
                "give exactly one of --max-drop, --max-risk, --budget-flops and --budget-ms"
            )
        options = self.delta is not None, self.mean_risk, self.loss, self.max_ms is not None
        if self.max_risk is None and any(options):
            raise UsageError("--delta, --mean-risk, --loss and --max-ms go with --max-risk")
        if self.mean_risk and self.delta is not None:
            raise UsageError("--mean-risk bounds a mean and has no --delta: leave one of them out")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop must lie between 0 and 100 points, not {self.max_drop}")
        for name, budget in (
            ("--budget-flops", self.budget_flops),
            ("--budget-ms", self.budget_ms),
        ):
            if budget is not None and not 0 < budget < float("inf"):
                raise UsageError(f"{name} must be a positive number, not {budget}")
        if self.loss is not None:
            look_up("--loss", self.loss, LOSSES)
        check_max_ms(self.max_ms)
        if self.max_risk is not None:
            check_levels(self.max_risk, self.levels[1], None)

    @property
    def levels(self) -> tuple[float, float | None]:
        """Epsilon and delta; a delta of None for the mean risk."""
        delta = DEFAULT_DELTA if self.delta is None else self.delta
        return self.max_risk or 0.0, None if self.mean_risk else delta

    @property
    def needs_latencies(self) -> bool:
        """Whether this device must have been measured."""
        return self.budget_ms is not None or self.max_ms is not None

    def words(self) -> str:
        """Return it as typed on the command line, with what was left out."""
        if self.max_drop is not None:
            return f"--max-drop {self.max_drop:g}"
        if self.budget_flops is not None:
            return f"--budget-flops {self.budget_flops:g}"
        if self.budget_ms is not None:
            return f"--budget-ms {self.budget_ms:g}"
        epsilon, delta = self.levels
        certainty = "--mean-risk" if delta is None else f"--delta {delta:g}"
        deadline = "" if self.max_ms is None else f" --max-ms {self.max_ms:g}"
        return f"--max-risk {epsilon:g} {certainty} --loss {self.loss or 'worse'}{deadline}"


def tune(
    opened: Bundle,
    goal: Goal,
    kind: str,
    *,
    name: str | None,
    out: Path | None,
    images: Path | None = None,
    engine: str | None,
    threads: int | None,
    say: Say,
) -> tuple[TunedPoint, str | Path | None]:
    """Choose thresholds for a goal, say what they do on held-back samples, and store them.

    Args:
        opened: the bundle.
        goal: what to reach.
        kind: a policy in `THRESHOLDS`.
        name: to store them under on this device; None means `tuned`.
        out: a file to write too.
        images: DIR/CLASS/..., labelled images to choose and to certify by; None: the bundle's
            validation images.
        engine: the one to measure, for a goal in ms; None lets `choose_engine` choose.
        threads: of the CPU engine.
        say: told what is going on.

    Returns:
        The operating point, and what `run --policy` takes for it; see `keep_point`.

    Raises:
        BundleError: the bundle is damaged.
        DataError: `images` holds none of the bundle's classes.
        UsageError: a name, a file or a policy that makes no sense, a budget that cannot be met, or
            too few samples to certify with.
        EngineError: the engine to measure cannot be had.
    """
    look_up("--policy", kind, THRESHOLDS)
    runs = goal.needs_latencies or images is not None
    if not runs and (engine, threads) != (None, None):
        raise UsageError("--engine and --threads go with --budget-ms, --max-ms or --images")
    name = DEFAULT_NAME if name is None else name
    check_name(opened, name)
    if out is not None:
        check_out(out)
    if len(opened.manifest.exits) < 2:
        raise UsageError(f"{opened.folder} has one exit: there is nothing to tune")
    recorded = None if images is None else record_logits(opened, images, engine, threads, say)
    if recorded is None:
        logits, labels = read_calibration(opened)
    else:
        logits, labels = recorded.logits, recorded.labels
    if goal.max_risk is not None:
        check_levels(*goal.levels, len(labels) - len(labels) // 2, goal.max_ms is not None)
    measured = _latencies(opened, kind, engine, threads, say) if goal.needs_latencies else None
    if measured is not None and measured.images is None:
        say(
            "these latencies count no decoding or scaling of images of yours: mate-edge bench "
            "--images YOURS measures it, then tune again"
        )
    if goal.max_risk is None and len(labels) < FEW_SAMPLES:
        say(
            f"{len(labels)} labelled images are few, and half of them are held back: tune --images "
            "DIR takes others"
        )
    costs: Sequence[float] = opened.manifest.cumulative_flops
    rounds, effect = None, 1.0
    if goal.budget_ms is not None and measured is not None:
        costs = mean_ms(measured)
    if goal.max_ms is not None and measured is not None:
        rounds, effect = _rounds_in_time(measured, goal.max_ms, say)
    calibrated = _reach(goal, Calibration(logits, labels, costs, kind, rounds, effect))
    drop = 100 * (calibrated.last_accuracy - calibrated.accuracy)
    if goal.max_drop is not None and drop > goal.max_drop:
        say(
            f"on the half held back it is {drop:.2f} points below the last exit, more than "
            f"{goal.max_drop:g}: a search is no promise, --max-risk gives one"
        )
    budget, cost = goal.budget_flops or goal.budget_ms, calibrated.outcome.mean_cost(costs)
    if budget is not None and cost > budget:
        say(
            f"on the half held back an image costs {cost:.4g} on average, more than the budget of "
            f"{budget:.4g}: a search is no promise, a smaller budget leaves room"
        )
    found = _point(opened, name, goal, kind, calibrated, measured, recorded)
    return found, _keep(opened, found, out, say)


def _latencies(
    bundle: Bundle, kind: str, engine: str | None, threads: int | None, say: Say
) -> Latencies:
    """Return what predictions take here with a kind of policy, measured when it is not known."""
    chosen = engine or choose_engine(bundle, say)
    temperatures = bundle.manifest.temperatures
    policy = THRESHOLDS[kind]((NEVER,) * (len(temperatures) - 1), temperatures)

    def start() -> Latencies:
        with Predictor(make_engine(chosen, bundle, threads, True), policy) as predictor:
            predictor.know_latencies(say)
            return predictor.latencies_of(policy)

    return build_if_needed(bundle, chosen, start, say)


def _rounds_in_time(
    measured: Latencies, max_ms: float, say: Say
) -> tuple[NDArray[np.int64], float]:
    """Return the exit that each measured round reaches by a deadline, and their design effect."""
    table = LatencyTable.from_samples(measured.segments_ms, measured.rest_ms)
    check_reachable(table, max_ms, strict=False, say=say, frame_ms=measured.frame_ms)
    rounds = np.asarray(exits_at_least(measured, max_ms), np.int64)
    num_exits = len(measured.segments_ms)
    return rounds, max(ended_by_one(measured, max_ms), design_effect(rounds, num_exits))


def mean_ms(measured: Latencies) -> list[float]:
    """Return the mean ms of a prediction that leaves at each exit."""
    before = sum(float(np.mean(row)) for row in (measured.decode_ms, measured.preprocess_ms) if row)
    rest = float(np.mean(measured.rest_ms)) / len(measured.segments_ms)  # after each segment
    own = [float(np.mean(row)) + rest for row in measured.segments_ms]
    return [before + sum(own[: k + 1]) for k in range(len(own))]


def _reach(goal: Goal, calibration: Calibration) -> Calibrated:
    if goal.max_drop is not None:
        return calibration.within_drop(goal.max_drop / 100)
    if goal.max_risk is not None:
        return calibration.within_risk(*goal.levels, LOSSES[goal.loss or "worse"])
    if goal.budget_flops is not None:
        return calibration.within_budget(goal.budget_flops, "FLOPs")
    assert goal.budget_ms is not None
    return calibration.within_budget(goal.budget_ms, "ms")


def _point(
    bundle: Bundle,
    name: str,
    goal: Goal,
    kind: str,
    calibrated: Calibrated,
    measured: Latencies | None,
    images: Recorded | None,
) -> TunedPoint:
    outcome, policy, guarantee = calibrated.outcome, calibrated.policy, calibrated.guarantee
    if guarantee is not None and goal.max_ms is not None and measured is not None:
        device = msgspec.to_builtins(measured.fingerprint)
        guarantee = msgspec.structs.replace(
            guarantee, max_ms=goal.max_ms, device=device, measured=measured.created
        )
    confidences: list[int] = []
    if images is not None and len(images.labels) >= FEWEST:  # else the validation images' count
        confidences = count_confidences(policy.decide(images.logits[:, :1])[1].max(axis=-1))
    return TunedPoint(
        name=name,
        bundle=bundle.id,
        goal=goal.words(),
        point=OperatingPoint(
            policy=kind,
            parameters=asdict(policy),
            val_accuracy=calibrated.accuracy,
            val_mean_flops=outcome.mean_cost(bundle.manifest.cumulative_flops),
            val_exit_shares=outcome.exit_shares(len(bundle.manifest.exits)),
            guarantee=guarantee,
        ),
        last_accuracy=calibrated.last_accuracy,
        samples=len(calibrated.labels),
        images=None if images is None else shown(images.folder.resolve()),
        images_sha256=None if images is None else images.sha256,
        confidences=tuple(confidences),
        mean_ms=None if measured is None else outcome.mean_cost(mean_ms(measured)),
        created=now_utc(),
    )


def _keep(bundle: Bundle, found: TunedPoint, out: Path | None, say: Say) -> str | Path | None:
    """Store a point as `keep_point` does, and say which one it replaces."""
    name = found.name
    before, was_there = kept_point(bundle, name), name in stored_names(bundle)
    stored = keep_point(found, out, say)
    if before is not None and stored == name:
        say(f"{name} replaces the one tuned for {before.goal} on {before.created[:10]}")
    elif was_there and stored == name:
        say(f"{name} replaces one that was damaged or of another version of mate-edge")
    return stored
