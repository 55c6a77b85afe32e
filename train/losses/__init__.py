"""Training methods by name. To add one: one file with a `Method`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args, get_type_hints

import msgspec

from mate_edge.errors import UsageError
from mate_edge.names import look_up
from mate_edge.runs import OptionValue
from mate_edge.train.losses.beed import Beed
from mate_edge.train.losses.byot import Byot
from mate_edge.train.losses.ce import CrossEntropy
from mate_edge.train.losses.dbt import Dbt
from mate_edge.train.losses.eed import Eed
from mate_edge.train.losses.mate import Mate
from mate_edge.train.losses.method import Method
from mate_edge.train.losses.okddip import Okddip

METHODS: dict[str, type[Method]] = {
    "ce": CrossEntropy,
    "byot": Byot,
    "dbt": Dbt,
    "eed": Eed,
    "beed": Beed,
    "okddip": Okddip,
    "mate": Mate,
}


def complete_options(name: str, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Return all options of a method: those given (text is converted), and the defaults.

    Raises:
        UsageError: an unknown method or option, or a value out of range.
    """
    look_up("--method", name, METHODS)
    options: dict[str, OptionValue] = msgspec.to_builtins(_convert(name, given))
    return options


def make_method(
    name: str, num_exits: int, num_classes: int, options: Mapping[str, OptionValue]
) -> Method:
    """Build a training method.

    Args:
        name: in `METHODS`.
        num_exits: K.
        num_classes: C.
        options: the method's own, by name; those left out have their defaults.

    Raises:
        UsageError: an unknown method or option, or a value out of range.
    """
    kind = look_up("--method", name, METHODS)
    return kind(num_exits, num_classes, _convert(name, options))


def _convert(name: str, given: Mapping[str, OptionValue]) -> msgspec.Struct:
    kind = METHODS[name].OPTIONS
    types = get_type_hints(kind)
    for option, value in given.items():
        if not types:
            raise UsageError(f"method {name} has no options, so {option!r} cannot be set")
        choices = get_args(look_up(f"option of {name}", option, types))
        if choices:
            look_up(option, str(value), dict.fromkeys(choices))
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        wanted, _, place = str(error).partition(" - at `$.")
        option = place.rstrip("`")
        missing = "a value is missing, " if given.get(option) == "" else ""
        raise UsageError(
            f"--method-option {option}={given.get(option)}: {missing}{_in_words(wanted)}"
        ) from None


def _in_words(wanted: str) -> str:
    """Return what msgspec wanted, such as "Expected `float`, got `str`", in a user's words."""
    text = wanted.partition(", got ")[0].replace("`float`", "a number")
    return f"{text[:1].lower()}{text[1:]}".replace("`bool`", "true or false")
