"""Optional dependencies: a missing one becomes a line that says how to get it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from mate_edge.errors import UsageError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a package that cannot be imported into a line about the extra `name`.

    Raises:
        UsageError: a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install 'mate-edge[{name}]'") from None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, as far as they are installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes 20 ms

    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
