"""Which policy is meant: an operating point, a fixed exit, a threshold, or a policy itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mate_edge.bundle import NUMBERED_POLICY, Bundle, Guarantee, OperatingPoint
from mate_edge.decide.policy import Confidence, Deepest, Policy, make_policy
from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.report.tuned import TunedPoint
from mate_edge.runtime.points import DEEPEST, kept_points, read_point, stored_names

DEFAULT_POLICY = "balanced"
PARAMETERS = {"exit": ("fixed-exit", "exit"), "patience": ("patience", "patience")}
"""The policy and its parameter that `exit-2` and `patience-2` mean."""


@dataclass(frozen=True)
class Chosen:
    """A policy, and what is known of it.

    Attributes:
        name: what the user calls it.
        policy: itself.
        guarantee: what is promised of it; None: nothing.
        confidences: how sure exit 1 was of the images that it was tuned on, see `TunedPoint`;
            empty where those are the bundle's validation images.
    """

    name: str
    policy: Policy
    guarantee: Guarantee | None = None
    confidences: tuple[int, ...] = ()


PolicyChoice = str | Path | Policy | Chosen | float | None


def choose_policy(bundle: Bundle, policy: PolicyChoice) -> Chosen:
    """Return the policy that is meant.

    Args:
        bundle: an opened bundle.
        policy: the name of an operating point, the bundle's own or one that `mate-edge tune` stored
            on this device; the file of one, `FILE.json`; `deepest`; `exit-2`, which always leaves
            at exit 2; `patience-2`, which leaves after 2 equal answers in a row; one threshold in
            [0, 1] for all exits; a `Policy`, or one that was chosen; or None for `balanced`.

    Raises:
        UsageError: an unknown name, an object that is no policy, a threshold out of range, a file
            or a stored point that is damaged or of another bundle or mate-edge, or a policy for
            another number of exits.
    """
    if policy is None:
        policy = DEFAULT_POLICY
    if isinstance(policy, str | Path):
        return _named(bundle, policy)
    temperatures = bundle.manifest.temperatures
    if isinstance(policy, Chosen):
        return _fitting(policy, len(temperatures))
    if isinstance(policy, (int, float, np.integer, np.floating)):
        if isinstance(policy, bool) or not 0 <= policy <= 1:
            raise UsageError(f"the threshold must lie between 0 and 1, not {policy}")
        policy = float(policy)
        thresholds = (policy,) * (len(temperatures) - 1)
        return Chosen(f"threshold {policy:g}", Confidence(thresholds, temperatures))
    if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
        raise UsageError(
            "a policy is a name, a number in [0, 1] or an object with the method decide, not "
            f"{policy!r:.80}"
        )
    return _fitting(Chosen(type(policy).__name__, policy), len(temperatures))


def _named(bundle: Bundle, policy: str | Path) -> Chosen:
    """Return what a name means, or the operating point of a file."""
    name, own = str(policy), bundle.manifest.operating_points
    temperatures = bundle.manifest.temperatures
    if name in own:
        return _of_point(name, own[name], len(temperatures))
    if name == DEEPEST:
        return Chosen(name, Deepest(temperatures))
    if numbered := NUMBERED_POLICY.fullmatch(name):
        kind, parameter = PARAMETERS[numbered[1]]
        values = {parameter: int(numbered[2]), "temperatures": temperatures}
        return Chosen(name, make_policy(kind, values))
    if isinstance(policy, Path) or name.endswith(".json"):
        return _of_tuned(name, read_point(Path(name), bundle), len(temperatures))
    kept = kept_points(bundle)
    if name not in kept and name in stored_names(bundle):
        raise UsageError(
            f"{name} is stored on this device, but is damaged or of another version of mate-edge: "
            f"tune it again (mate-edge tune --name {name})"
        )
    numbered_ones = "exit-1", f"patience-{min(2, len(temperatures))}"
    known = dict.fromkeys([*own, *kept, DEEPEST, *numbered_ones])
    look_up("policy", name, known)
    return _of_tuned(name, kept[name], len(temperatures))  # the others were found above


def resolve_policy(bundle: Bundle, policy: PolicyChoice) -> Policy:
    """Return the policy alone; see `choose_policy`."""
    return choose_policy(bundle, policy).policy


def _of_point(name: str, point: OperatingPoint, num_exits: int) -> Chosen:
    policy = make_policy(point.policy, point.parameters)
    return _fitting(Chosen(name, policy, point.guarantee), num_exits)


def _of_tuned(name: str, found: TunedPoint, num_exits: int) -> Chosen:
    chosen = _of_point(name, found.point, num_exits)
    return replace(chosen, confidences=found.confidences)


def _fitting(chosen: Chosen, num_exits: int) -> Chosen:
    """Refuse a policy for another number of exits."""
    found = len(getattr(chosen.policy, "temperatures", range(num_exits)))
    if found != num_exits:
        raise UsageError(
            f"policy {chosen.name} is for another number of exits: {found}, the bundle has "
            f"{num_exits}"
        )
    return chosen
