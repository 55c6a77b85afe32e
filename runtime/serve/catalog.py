"""Which models there are: names, versions and the folders of their bundles.

A repository is a folder: `NAME/VERSION/` holds a bundle, VERSION a number from 1, so that a new one
is put beside the old ones; or `NAME.mate` is a bundle, its version 1. It is read again whenever
somebody asks, since versions come while the server runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mate_edge.bundle import MANIFEST
from mate_edge.errors import UsageError
from mate_edge.files import BUNDLE_SUFFIX, resolved
from mate_edge.runtime.serve.reply import log

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9]\d{0,17}")
Versions = dict[int, Path]


@dataclass(frozen=True)
class Catalog:
    """What may be loaded.

    Args:
        bundles: folders that were named outright; each is version 1 of a model of its name. A link
            keeps its own: what it points at may be another bundle the next time it is loaded.
        repository: a folder of models; None: no other models.
    """

    bundles: Sequence[Path]
    repository: Path | None = None

    def models(self) -> dict[str, Versions]:
        """Return each model's versions and their folders, as they are on disk now.

        Raises:
            UsageError: two bundles of one name and version, a bundle whose name cannot be a
                model's, or a repository that cannot be read.
        """
        found: dict[str, Versions] = {}

        def add(name: str, version: int, folder: Path) -> None:
            if not NAME.fullmatch(name):
                raise UsageError(
                    f"{folder} has no name for a model: use letters, digits, -, _ and ."
                )
            versions = found.setdefault(name, {})
            if version in versions:
                raise UsageError(
                    f"{versions[version]} and {folder} are both version {version} of {name}: "
                    "rename one"
                )
            versions[version] = folder

        for folder in self.bundles:
            named = folder if folder.name.strip(".") else resolved(folder)  # such as . and ..
            add(named.name.removesuffix(BUNDLE_SUFFIX), 1, folder)
        if self.repository is not None:
            try:
                folders = _folders(self.repository)
            except OSError as error:
                raise UsageError(
                    f"cannot read the repository {self.repository}: {error.strerror}"
                ) from None
            for folder in folders:
                with _if_readable(folder):
                    for version, bundle in _versions(folder).items():
                        with _if_readable(bundle):
                            if (bundle / MANIFEST).is_file():  # or it is being copied
                                add(folder.name.removesuffix(BUNDLE_SUFFIX), version, bundle)
        return found


def _versions(folder: Path) -> Versions:
    """Return what may be bundles of a model: a folder of a repository, or the numbers in it."""
    if folder.name.endswith(BUNDLE_SUFFIX):
        return {1: folder}
    return {int(one.name): one for one in _folders(folder) if VERSION.fullmatch(one.name)}


def _folders(path: Path) -> list[Path]:
    """Return the folders in `path`, sorted, without hidden ones."""
    found = []
    for one in sorted(path.iterdir()):
        with _if_readable(one):
            if not one.name.startswith(".") and one.is_dir():
                found.append(one)
    return found


@contextmanager
def _if_readable(path: Path) -> Iterator[None]:
    """Leave out what this process may not look into, such as lost+found, and say so in the log."""
    try:
        yield
    except OSError as error:
        log.warning("%s is left out: %s", path, error.strerror)
