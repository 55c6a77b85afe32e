"""Which policy is meant: an operating point of the bundle, a threshold, or a policy itself."""

from __future__ import annotations

from mate_edge.bundle import Manifest
from mate_edge.decide.policy import Confidence, Deepest, Policy, make_policy
from mate_edge.errors import UsageError
from mate_edge.names import look_up

PolicyChoice = str | Policy | float | None
DEFAULT_POLICY = "balanced"


def resolve_policy(manifest: Manifest, policy: PolicyChoice) -> Policy:
    """Return the policy that is meant.

    Args:
        manifest: of the bundle.
        policy: the name of an operating point of the bundle, `deepest`, one threshold in [0, 1]
            for all exits, a `Policy`, or None for `balanced`.

    Raises:
        UsageError: an unknown name, or a threshold out of range.
    """
    temperatures = tuple(exit_.temperature for exit_ in manifest.exits)
    if policy is None:
        policy = DEFAULT_POLICY
    if isinstance(policy, int | float):
        if not 0 <= policy <= 1:
            raise UsageError(f"the threshold must lie between 0 and 1, not {policy}")
        return Confidence((float(policy),) * (len(temperatures) - 1), temperatures)
    if not isinstance(policy, str):
        return policy
    points = manifest.operating_points
    point = look_up("policy", policy, {**points, "deepest": None})
    if point is None:
        return Deepest(temperatures)
    found = make_policy(point.policy, point.parameters)
    if len(getattr(found, "temperatures", temperatures)) != len(temperatures):
        raise UsageError(f"operating point {policy} is for another number of exits")
    return found
