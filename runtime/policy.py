"""Which policy is meant: an operating point, a fixed exit, a threshold, or a policy itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mate_edge.bundle import NUMBERED_POLICY, Bundle, Guarantee, OperatingPoint
from mate_edge.decide.policy import Confidence, Deepest, Policy, make_policy
from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.runtime.points import DEEPEST, all_points, read_point

PolicyChoice = str | Path | Policy | float | None
DEFAULT_POLICY = "balanced"
PARAMETERS = {"exit": ("fixed-exit", "exit"), "patience": ("patience", "patience")}
"""The policy and its parameter that `exit-2` and `patience-2` mean."""


@dataclass(frozen=True)
class Chosen:
    """A policy, what the user calls it, and what is promised of it: None, nothing."""

    name: str
    policy: Policy
    guarantee: Guarantee | None = None


def choose_policy(bundle: Bundle, policy: PolicyChoice) -> Chosen:
    """Return the policy that is meant.

    Args:
        bundle: an opened bundle.
        policy: the name of an operating point, the bundle's own or one that `mate-edge tune` stored
            on this device; the file of one, `FILE.json`; `deepest`; `exit-2`, which always leaves
            at exit 2; `patience-2`, which leaves after 2 equal answers in a row; one threshold in
            [0, 1] for all exits; a `Policy`; or None for `balanced`.

    Raises:
        UsageError: an unknown name, an object that is no policy, a threshold out of range, a file
            that is damaged or of another bundle, or a policy for another number of exits.
    """
    temperatures = tuple(exit_.temperature for exit_ in bundle.manifest.exits)
    if policy is None:
        policy = DEFAULT_POLICY
    if isinstance(policy, (int, float, np.integer, np.floating)):
        if not 0 <= policy <= 1:
            raise UsageError(f"the threshold must lie between 0 and 1, not {policy}")
        policy = float(policy)
        thresholds = (policy,) * (len(temperatures) - 1)
        return Chosen(f"threshold {policy:g}", Confidence(thresholds, temperatures))
    if not isinstance(policy, str | Path):
        if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
            raise UsageError(
                "a policy is a name, a number in [0, 1] or an object with the method decide, not "
                f"{policy!r:.80}"
            )
        return _fitting(Chosen(type(policy).__name__, policy), len(temperatures))
    name = str(policy)
    own = bundle.manifest.operating_points
    if name in own:
        return _fitting(_of_point(name, own[name]), len(temperatures))
    if name == DEEPEST:
        return Chosen(name, Deepest(temperatures))
    if numbered := NUMBERED_POLICY.fullmatch(name):
        kind, parameter = PARAMETERS[numbered[1]]
        values = {parameter: int(numbered[2]), "temperatures": temperatures}
        return Chosen(name, make_policy(kind, values))
    if isinstance(policy, Path) or name.endswith(".json"):
        return _fitting(_of_point(name, read_point(Path(name), bundle).point), len(temperatures))
    others: dict[str, None] = dict.fromkeys((DEEPEST, "exit-1", "patience-2"))
    point = look_up("policy", name, {**all_points(bundle), **others})
    assert point is not None  # the others were found above
    return _fitting(_of_point(name, point), len(temperatures))


def resolve_policy(bundle: Bundle, policy: PolicyChoice) -> Policy:
    """Return the policy alone; see `choose_policy`."""
    return choose_policy(bundle, policy).policy


def _of_point(name: str, point: OperatingPoint) -> Chosen:
    return Chosen(name, make_policy(point.policy, point.parameters), point.guarantee)


def _fitting(chosen: Chosen, num_exits: int) -> Chosen:
    """Refuse a policy for another number of exits."""
    found = len(getattr(chosen.policy, "temperatures", range(num_exits)))
    if found != num_exits:
        raise UsageError(
            f"policy {chosen.name} is for another number of exits: {found}, the bundle has "
            f"{num_exits}"
        )
    return chosen
