"""Policies: the rule that says leave or go on. The same object in simulation and in the runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.softmax import Logits, largest, log_softmax, softmax
from mate_edge.errors import UsageError
from mate_edge.names import look_up

NEVER = 2.0
"""A threshold that no score reaches."""
COLDEST, HOTTEST = 1e-3, 1e3
"""The bounds of a temperature: far beyond them float32 knows neither logits nor classes apart."""

SUMS_TO = 1e-3
"""How far from 1 the sum of a sample's probabilities may be."""


class Policy(Protocol):
    """Says, after each exit, which samples leave."""

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """Decide at exit k from the logits of all exits so far.

        The last exit's samples leave in any case: that is the caller's to see to.

        Args:
            logits: float32 [n, k, C], the k exits passed, the current one last.

        Returns:
            leave, bool [n], and probabilities, float32 [n, C].
        """
        ...


def decide(policy: Policy, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
    """Ask a policy, somebody's own perhaps, and refuse what is not as `Policy.decide` says.

    An array of 0 and 1 would be taken for the numbers of samples. The policies of this file need
    not be asked whether their probabilities are some: they take a softmax.

    Raises:
        UsageError: with what it returned.
    """
    answer = policy.decide(logits)
    if isinstance(answer, tuple) and len(answer) == 2:
        leave, probabilities = answer
        if (
            isinstance(leave, np.ndarray)
            and leave.dtype == np.bool_
            and leave.shape == logits.shape[:1]
            and isinstance(probabilities, np.ndarray)
            and probabilities.dtype.kind == "f"
            and probabilities.shape == logits[:, -1].shape
        ):
            if type(policy) not in POLICIES.values():
                _check_probabilities(policy, probabilities)
                probabilities = probabilities.copy()  # theirs may be written into again
            return leave, probabilities
    raise UsageError(
        f"the policy {type(policy).__name__} must return leave, bool [{len(logits)}], and "
        f"probabilities, float {list(logits[:, -1].shape)}, not {_kinds(answer)}"
    )


def _check_probabilities(policy: Policy, probabilities: Logits) -> None:
    fine = abs(probabilities.sum(axis=-1) - 1) <= SUMS_TO
    fine &= probabilities.min(axis=-1) >= 0
    if not fine.all():
        shown = ", ".join(f"{value:.4g}" for value in probabilities[~fine][0][:3])
        raise UsageError(
            f"the policy {type(policy).__name__} returned {shown}, ... for probabilities: decide() "
            "must return some in [0, 1] that sum to 1, such as those of softmax()"
        )


def _kinds(answer: object) -> str:
    if isinstance(answer, tuple):
        return f"({', '.join(map(_kinds, answer))})"
    if isinstance(answer, np.ndarray):
        return f"{answer.dtype} {list(answer.shape)}"
    return f"a {type(answer).__name__}"


def plain_floats(name: str, values: object) -> tuple[float, ...]:
    """Return numbers as a tuple of Python's own.

    Raises:
        UsageError: they are none.
    """
    try:
        return tuple(float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name} must be numbers, not {values!r:.80}") from None


def check_temperatures(temperatures: tuple[float, ...]) -> None:
    """Refuse temperatures out of their bounds.

    Raises:
        UsageError: with the values.
    """
    if not temperatures or not all(COLDEST <= value <= HOTTEST for value in temperatures):
        raise UsageError(
            f"temperatures must lie between {COLDEST:g} and {HOTTEST:g}, not {temperatures}"
        )


def check_number(name: str, number: object, most: int) -> None:
    """Refuse what is no whole number from 1 to `most`.

    Raises:
        UsageError: with the value.
    """
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not (whole and 1 <= number <= most):  # type: ignore[operator]
        raise UsageError(f"{name} must be a whole number from 1 to {most}, not {number!r:.80}")


class _Tempered(ABC):
    """What all policies share: one temperature for each exit (Guo et al., arXiv:1706.04599)."""

    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        temperatures = plain_floats("temperatures", self.temperatures)
        object.__setattr__(self, "temperatures", temperatures)
        check_temperatures(temperatures)

    @abstractmethod
    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""

    def answer(self, logits: Logits) -> Logits:
        """Return the probabilities [n, C] that are answered after the exits [n, k, C] passed."""
        return softmax(logits[:, -1], self.temperatures[logits.shape[1] - 1])


@dataclass(frozen=True)
class Thresholds(_Tempered):
    """Leave exit k when its score is at least `thresholds[k]`: the base of four policies.

    Args:
        thresholds: one for each exit but the last, in [0, 1] as the scores are, or `NEVER`.
        temperatures: one for each exit, positive.
    """

    thresholds: tuple[float, ...]
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        thresholds = plain_floats("thresholds", self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        if len(self.temperatures) != len(thresholds) + 1:
            raise UsageError(
                f"{len(self.temperatures)} exits need {len(self.temperatures) - 1} thresholds, "
                f"not {len(thresholds)}"
            )
        if not all(0 <= value <= 1 or value == NEVER for value in thresholds):
            raise UsageError(
                f"thresholds must lie between 0 and 1, or be {NEVER:g} for never, not {thresholds}"
            )

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""
        k = logits.shape[1]
        probabilities = self.answer(logits)
        if k > len(self.thresholds):
            return np.ones(len(logits), np.bool_), probabilities
        return self.score(probabilities) >= self.thresholds[k - 1], probabilities

    @staticmethod
    @abstractmethod
    def score(probabilities: Logits) -> Logits:
        """Return how sure an answer is, float32 [n] in [0, 1], of probabilities [n, C]."""


class Confidence(Thresholds):
    """Score: the largest probability."""

    score = staticmethod(largest)

    @property
    def least_confidences(self) -> tuple[float, ...]:
        """From which confidence on a sample leaves each exit, the last one included, [K]."""
        return *self.thresholds, 0.0


class Entropy(Thresholds):
    """Score: one minus the entropy over its largest value, log C.

    Teerapittayanon et al., "BranchyNet", ICPR 2016, arXiv:1709.01686.
    """

    @staticmethod
    def score(probabilities: Logits) -> Logits:
        """See `Thresholds.score`."""
        tiny = np.finfo(np.float32).tiny
        entropy = -(probabilities * np.log(probabilities.clip(min=tiny))).sum(axis=-1)
        scaled: Logits = 1 - entropy / np.float32(np.log(probabilities.shape[-1]))
        return scaled.clip(0, 1)


class Margin(Thresholds):
    """Score: the largest probability minus the second."""

    @staticmethod
    def score(probabilities: Logits) -> Logits:
        """See `Thresholds.score`."""
        second, first = np.partition(probabilities, -2, axis=-1)[:, -2:].T
        margin: Logits = first - second
        return margin


class RunningEnsemble(Thresholds):
    """Answer with the geometric mean of all exits passed; score: its largest probability.

    After the ensembles of Wołczyk et al., "Zero Time Waste", NeurIPS 2021, arXiv:2106.05409, with
    equal weights instead of learned ones.
    """

    score = staticmethod(largest)

    def answer(self, logits: Logits) -> Logits:
        """See `Thresholds.answer`."""
        passed = np.asarray(self.temperatures[: logits.shape[1]], np.float32)
        logs = [log_softmax(logits[:, k], t) for k, t in enumerate(passed)]
        return softmax(np.mean(logs, axis=0, dtype=np.float32))


@dataclass(frozen=True)
class Patience(_Tempered):
    """Leave when `patience` exits in a row have given the same answer.

    Zhou et al., "BERT Loses Patience", NeurIPS 2020, arXiv:2006.04152.

    Args:
        patience: how many, the current exit included; 1 leaves at the first exit.
        temperatures: one for each exit, positive.
    """

    patience: int
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("patience", self.patience, len(self.temperatures))

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""
        k, probabilities = logits.shape[1], self.answer(logits)
        if k >= len(self.temperatures):
            return np.ones(len(logits), np.bool_), probabilities
        if k < self.patience:
            return np.zeros(len(logits), np.bool_), probabilities
        answers = logits[:, k - self.patience :].argmax(axis=-1)
        return (answers == answers[:, -1:]).all(axis=1), probabilities


class _AtDepth(_Tempered):
    """Leaves from one exit on, whatever is seen."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """The exit, from 1."""

    def decide(self, logits: Logits) -> tuple[NDArray[np.bool_], Logits]:
        """See `Policy.decide`."""
        return np.full(len(logits), logits.shape[1] >= self.depth), self.answer(logits)

    @property
    def least_confidences(self) -> tuple[float, ...]:
        """See `Confidence.least_confidences`."""
        return (NEVER,) * (self.depth - 1) + (0.0,) * (len(self.temperatures) - self.depth + 1)


@dataclass(frozen=True)
class FixedExit(_AtDepth):
    """Leave at one exit, whatever is seen: an anytime network's answer at a known cost.

    Args:
        exit: its number, from 1.
        temperatures: one for each exit, positive.
    """

    exit: int
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("exit", self.exit, len(self.temperatures))

    @property
    def depth(self) -> int:
        """See `_AtDepth.depth`."""
        return self.exit


@dataclass(frozen=True)
class Deepest(_AtDepth):
    """Never leave early: the last exit answers, or the deepest one that a deadline allows."""

    temperatures: tuple[float, ...]

    @property
    def depth(self) -> int:
        """See `_AtDepth.depth`."""
        return len(self.temperatures)


THRESHOLDS: dict[str, type[Thresholds]] = {
    "confidence": Confidence,
    "entropy": Entropy,
    "margin": Margin,
    "ensemble": RunningEnsemble,
}
"""Policies with one threshold an exit, which `tune` can choose."""

POLICIES: dict[str, type[Any]] = {
    **THRESHOLDS,
    "patience": Patience,
    "fixed-exit": FixedExit,
    "deepest": Deepest,
}


def make_policy(name: str, parameters: dict[str, Any]) -> Policy:
    """Build a policy by its name in `POLICIES`.

    Raises:
        UsageError: an unknown name, or parameters that do not fit.
    """
    kind = look_up("policy", name, POLICIES)
    try:
        policy: Policy = msgspec.convert(parameters, kind)
    except (msgspec.ValidationError, UsageError) as reason:
        raise UsageError(f"policy {name}: {reason}") from None
    return policy
