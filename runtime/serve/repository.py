"""The models that serve: loaded, switched and unloaded while requests come in.

One version of a model serves at a time. Another is loaded beside it and takes its place in one
step; requests that the old one has accepted are finished by it, then it is closed. All methods run
in the event loop's thread but what loads, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mate_edge.bundle import read_bundle
from mate_edge.errors import MateEdgeError, UsageError
from mate_edge.files import resolved
from mate_edge.names import look_up
from mate_edge.runtime.engines import Say
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.policy import choose_policy
from mate_edge.runtime.serve.catalog import Catalog, Versions
from mate_edge.runtime.serve.loading import Options, load_model
from mate_edge.runtime.serve.model import Model
from mate_edge.runtime.serve.reply import Refusal, log
from mate_edge.runtime.serve.workers import Workers


@dataclass
class _Serving:
    """A model's loaded version, and how many requests it has accepted and not answered."""

    model: Model
    busy: int = 0
    retired: bool = False

    def close_if_done(self) -> None:
        if self.retired and self.busy == 0:
            self.model.close()


class Repository:
    """The loaded models by name.

    Args:
        catalog: what may be loaded.
        options: how models are run.
        metrics: watches them.
        say: told what is loaded.

    Attributes:
        dropped: calls of `load` that nobody waited for; what one of them does may go on.
    """

    def __init__(self, catalog: Catalog, options: Options, metrics: Metrics, say: Say) -> None:
        self.catalog, self.options, self.metrics, self._say = catalog, options, metrics, say
        self._serving: dict[str, _Serving] = {}
        self._unloaded: set[str] = set()
        self._loading = asyncio.Lock()
        self._loader = Workers(1, max_queue=0)
        self.dropped = 0

    def load_all(self) -> None:
        """Load the newest version of every model that can be loaded, before the server listens.

        A version that cannot be loaded is said, and the one before it is tried: a policy may be
        tuned for that one alone.

        Raises:
            MateEdgeError: a bundle that was named outright cannot be loaded, none can, or there is
                none.
        """
        models = self.catalog.models()
        if not models:
            raise UsageError(
                f"there is no bundle in {self.catalog.repository}: it takes NAME/1/ or NAME.mate"
            )
        for name, versions in models.items():
            self._load_newest(name, versions)
        if not self._serving:
            raise UsageError(f"no model of {self.catalog.repository} can be loaded: see above")

    def _load_newest(self, name: str, versions: Versions) -> None:
        for number in sorted(versions, reverse=True):
            try:
                self._take(self._load(name, number, versions))
                break
            except MateEdgeError as error:
                if versions[number] in self.catalog.bundles:
                    raise
                self._say(f"{name} version {number} cannot be loaded and is left out: {error}")

    def loaded(self) -> list[Model]:
        """Return the models that serve."""
        return [one.model for one in self._serving.values()]

    @property
    def ready(self) -> bool:
        """Whether any model serves."""
        return bool(self._serving)

    @contextmanager
    def model(self, name: str, version: str | None = None) -> Iterator[Model]:
        """Yield the model that serves under a name; it stays open until the block ends.

        Raises:
            Refusal: 404, there is none of that name and version.
        """
        serving = self._find(name, version)
        serving.busy += 1
        try:
            yield serving.model
        finally:
            serving.busy -= 1
            serving.close_if_done()

    def only(self, name: str | None) -> str:
        """Return `name`, or where it is None the one model that there is.

        Raises:
            Refusal: 400, there are several.
        """
        if name is not None:
            return name
        if len(self._serving) != 1:
            names = ", ".join(sorted(self._serving)) or "none is loaded"
            raise Refusal(400, f"say in the address which model, such as ?model=NAME: {names}")
        return next(iter(self._serving))

    def _find(self, name: str, version: str | None) -> _Serving:
        serving = self._serving.get(name)
        if serving is None:
            if name in self._unloaded:
                raise Refusal(404, f"model {name} is not loaded: load it first")
            try:
                look_up("model", name[:128], self._serving)
            except UsageError as error:
                raise Refusal(404, str(error)) from None
        assert serving is not None
        if version not in (None, "", serving.model.version):
            raise Refusal(
                404,
                f"version {version[:20]!r} of {name} does not serve: {serving.model.version} does",
            )
        return serving

    async def load(self, name: str, version: str | None) -> None:
        """Load a version, the newest when None, and let it serve in place of the one that does.

        Raises:
            Refusal: 404, there is no such version; 400, it cannot be loaded or is refused by its
                golden inputs, and the one before goes on serving.
        """
        try:
            async with self._loading:
                found = await self._loader.submit(lambda _: self._prepare(name, version))
                if found is not None:
                    self._take(found)
        except asyncio.CancelledError:
            self.dropped += 1
            raise

    def _read_catalog(self) -> dict[str, Versions]:
        """Return what is on disk; what is wrong there is the owner's to read, in the log.

        Raises:
            Refusal: 500, it cannot be read.
        """
        try:
            return self.catalog.models()
        except MateEdgeError as error:
            log.error("%s", error)
            raise Refusal(500, "the repository cannot be read: the server's log says why") from None

    def _prepare(self, name: str, version: str | None) -> Model | None:
        """Load a model in the loader's thread; None when that very bundle serves already."""
        models = self._read_catalog()
        versions = models.get(name)
        if versions is None:
            names = ", ".join(sorted(models))
            raise Refusal(404, f"there is no model {name[:128]!r}: choose from {names}")
        if version is None:
            number = max(versions)
        elif version.isascii() and version.isdigit() and int(version[:20]) in versions:
            number = int(version[:20])
        else:
            known = ", ".join(map(str, sorted(versions)))
            raise Refusal(404, f"{name} has no version {version[:20]!r}: choose from {known}")
        serving = self._serving.get(name)
        try:
            if (
                serving is not None
                and serving.model.version == str(number)
                and self._is_same(serving.model, versions[number])
            ):
                return None
            return self._load(name, number, versions, beside=bool(self._serving))
        except MateEdgeError as error:
            log.error("%s version %s cannot be loaded: %s", name, number, error)
            raise Refusal(
                400,
                f"{name} version {number} cannot be loaded: {_without(error, versions[number])}",
            ) from None

    def _is_same(self, model: Model, folder: Path) -> bool:
        """Say whether that bundle serves, with the operating point as it is stored now."""
        bundle = read_bundle(folder)
        if model.bundle.id != bundle.id:
            return False
        return choose_policy(bundle, self.options.policy) == model.predictors[0].chosen

    def _load(self, name: str, number: int, versions: Versions, beside: bool = False) -> Model:
        model = load_model(
            versions[number], name, str(number), self.options, self.metrics, self._say, beside
        )
        device = model.predictors[0].engine.device
        self._say(f"{name} version {number}: {device}, {self.options.workers} workers")
        return model

    def _take(self, model: Model) -> None:
        """Let a model serve from now on."""
        before = self._serving.get(model.name)
        self._serving[model.name] = _Serving(model)
        self._unloaded.discard(model.name)
        self.metrics.watch(model.name, model.drift, model.slow_down)
        if before is not None:
            before.retired = True
            before.close_if_done()

    def unload(self, name: str) -> None:
        """Let a model serve no longer; what it has accepted is answered.

        Raises:
            Refusal: 404, it is not loaded.
        """
        serving = self._find(name, None)
        del self._serving[name]
        self._unloaded.add(name)
        self.metrics.forget(name)
        serving.retired = True
        serving.close_if_done()

    def index(self) -> list[dict[str, Any]]:
        """Return what the model repository extension calls the index: every version on disk.

        Raises:
            Refusal: 500, the repository cannot be read.
        """
        found = []
        for name, versions in sorted(self._read_catalog().items()):
            serving = self._serving.get(name)
            reason = "not loaded" if serving is None else "another version serves"
            for number in sorted(versions):
                ready = serving is not None and serving.model.version == str(number)
                state = {"state": "READY"} if ready else {"state": "UNAVAILABLE", "reason": reason}
                found.append({"name": name, "version": str(number), **state})
        return found

    def close(self) -> None:
        """Close all models; nothing but a load that was dropped may be running any more."""
        if not self.dropped:
            self._loader.stop()
        for serving in self._serving.values():
            serving.model.close()
        self._serving.clear()


def _without(error: Exception, folder: Path) -> str:
    """Return the text of an error without the server's folders."""
    text = str(error)
    for path in (folder, resolved(folder)):
        text = text.replace(f"{path}/", "")
        if path.is_absolute() or len(path.parts) > 1:  # a short one stands in other words, too
            text = text.replace(str(path), "the bundle")
    return text if "/" not in text.replace("segments/", "") else "the server's log says why"
