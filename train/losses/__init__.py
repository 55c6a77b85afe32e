"""Training methods by name. To add one: one file with a `Method`, and a line here."""

from __future__ import annotations

from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.train.losses.ce import CrossEntropy
from mate_edge.train.losses.mate import Mate
from mate_edge.train.losses.method import Method

METHODS: dict[str, type[Method]] = {"ce": CrossEntropy, "mate": Mate}


def make_method(name: str, num_exits: int, options: dict[str, float]) -> Method:
    """Build a training method.

    Args:
        name: in `METHODS`.
        num_exits: K.
        options: the method's own, by name.

    Raises:
        UsageError: an unknown method or option, or a value out of range.
    """
    kind = look_up("--method", name, METHODS)
    for option in options:
        if not kind.OPTIONS:
            raise UsageError(f"method {name} has no options, so {option!r} cannot be set")
        look_up(f"option of {name}", option, kind.OPTIONS)
    return kind(num_exits, **options)
