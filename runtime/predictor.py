"""From an image to a prediction: segments one after another, until the policy or the deadline."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from mate_edge.bundle import Bundle, read_bundle
from mate_edge.decide.policy import Policy
from mate_edge.errors import EngineError, ImageError, UsageError
from mate_edge.images import crop
from mate_edge.machine import check_threads
from mate_edge.runtime.batch import answer_batches
from mate_edge.runtime.deadline import LatencyTable, check_reachable
from mate_edge.runtime.engines import Say, make_engine
from mate_edge.runtime.engines.engine import Engine
from mate_edge.runtime.inputs import (
    Frame,
    check_inputs,
    check_several,
    check_started,
    goes_in_raw,
    plain_ms,
    read_frame,
    ready_pixels,
    to_image,
)
from mate_edge.runtime.latencies import Latencies
from mate_edge.runtime.policy import Chosen, PolicyChoice, choose_policy, resolve_policy
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.segments import Loop
from mate_edge.runtime.stats import Stats, Tally
from mate_edge.runtime.timing import Timing
from mate_edge.runtime.warm import load_decoders
from mate_edge.warn import warn


class Predictor:
    """Runs one bundle on one device; serves one thread at a time (`clone` it for others).

    Args:
        engine: of the bundle.
        policy: see `choose_policy`.
        clock: of nanoseconds; `time.perf_counter_ns`.

    Attributes:
        timing: what it knows of this device; see `know_latencies`.
        passed: the logits, float32 [1, C], of each exit that the last image passed; batches of
            several leave them as they are.
    """

    def __init__(
        self,
        engine: Engine,
        policy: PolicyChoice = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.engine, self.clock = engine, clock
        self.bundle: Bundle = engine.bundle
        self.manifest = self.bundle.manifest
        self.timing = Timing(engine, clock)
        self._use(choose_policy(self.bundle, policy))
        self.passed: list[NDArray[np.float32]] = []
        self._preprocessing = self.manifest.preprocessing
        self._tally, self._lock = Tally(self.bundle), threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        policy: PolicyChoice = None,
        engine: str | None = None,
        threads: int | None = None,
        shared_pool: bool = False,
        lazy: bool = False,
        max_ms: float | None = None,
        strict: bool = False,
    ) -> Predictor:
        """Open a bundle and make it ready: all segments open and warmed up.

        Args:
            bundle: the folder.
            policy: see `choose_policy`.
            engine: a name in `ENGINES`; None takes the one that the bundle was exported for (on a
                CPU the fastest that `mate-edge build` found here, if it did), or onnxruntime, with
                a warning, where there is no NVIDIA GPU.
            threads: of the CPU engine; None lets it choose.
            shared_pool: see `OnnxRuntimeEngine`.
            lazy: open a segment only when it is first needed: for one image without a deadline.
            max_ms: a deadline that `predict` will be given: what it rests on is made ready now,
                see `know_latencies`, as are the decoders of pictures, and there is a warning if
                exit 1 may need longer.
            strict: make that warning an error.

        Raises:
            BundleError: missing, altered or of a newer schema.
            UsageError: an unknown policy or engine, a deadline that is not positive, or, when
                `strict`, one below what exit 1 needs.
            EngineNotBuilt: the engines must be built on this device first; nothing here does it.
            EngineError: the engine cannot be had.
        """
        if not isinstance(bundle, str | os.PathLike) or not str(bundle):
            raise UsageError(f"a bundle is the path of its folder, not {bundle!r:.80}")
        if max_ms is not None:
            max_ms = plain_ms(max_ms)
        elif strict:
            raise UsageError("strict goes with max_ms")
        check_threads(threads)
        made = make_engine(engine, read_bundle(bundle), threads, shared_pool)
        with ExitStack() as when_it_fails:
            predictor = when_it_fails.enter_context(cls(made, policy))
            if max_ms is not None:
                load_decoders(made.bundle.manifest.preprocessing)
                table = predictor.know_latencies()
                check_reachable(table, max_ms, strict, warn, predictor.timing.frame_ms)
            elif not lazy:
                predictor.warm_up()
            when_it_fails.pop_all()
        return predictor

    @classmethod
    def warmed_up(cls, engine: Engine, policy: PolicyChoice = None) -> Predictor:
        """Return a predictor whose segments are open and have run; if one fails, nothing is left.

        Raises:
            UsageError: as `choose_policy`.
            EngineNotBuilt, EngineError: a segment cannot be opened or run.
        """
        with ExitStack() as when_it_fails:
            predictor = when_it_fails.enter_context(cls(engine, policy))
            predictor.warm_up()
            when_it_fails.pop_all()
        return predictor

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self.chosen.policy

    def know_latencies(self, say: Say = warn, keep: bool = True) -> LatencyTable:
        """Warm up, and take the latencies kept of this device, or measure and keep them.

        Args:
            say: told when they must be measured, which takes as long as in `measure`.
            keep: whether other processes shall rest on what is measured; no, beside other work.

        Returns:
            Their table, with what the decisions of the predictor's policy take.

        Raises:
            UsageError: another thread is predicting with this object.
        """
        with self._alone():
            self._check_open()
            return self.timing.know(self.policy, say, keep)

    def latencies_of(self, policy: Policy) -> Latencies:
        """Return what was measured, its rest longer by what the policy's decisions take.

        The rounds are of a policy that is quick to decide. How much longer another kind takes is
        measured once, in a few rounds of all segments with it and as many without.

        Raises:
            UsageError: another thread is predicting with this object.
        """
        with self._alone():
            self._check_open()
            return self.timing.of(policy)

    def measure(self) -> LatencyTable:
        """Measure the segments on this device, warmed up, and keep the rounds for later processes.

        A device state that cannot be written keeps nothing, with a warning.
        Takes a second; with a large network as long as the rounds that a quantile needs, ten
        seconds at most, and ten rounds of the whole network at least.

        Raises:
            UsageError: another thread is predicting with this object.
        """
        with self._alone():
            self._check_open()
            self.timing.measure(warn)
            return self.timing.table(self.policy)

    def warm_up(self) -> None:
        """Open all segments and run them a few times.

        Raises:
            UsageError: another thread is predicting with this object.
        """
        with self._alone():
            self._check_open()
            self.timing.warm_up()

    def predict(
        self,
        frame: Frame,
        *,
        max_ms: float | None = None,
        started_ns: int | None = None,
        color: Literal["rgb", "bgr"] = "rgb",
        policy: PolicyChoice = None,
    ) -> Prediction:
        """Classify one image.

        Args:
            frame: a path, encoded bytes, a PIL image, or a frame uint8 [H, W, 3] or [H, W]. One of
                the engine's `frame_shape` and `frame_color` is preprocessed on the device; it may
                lie in device memory then (`__cuda_array_interface__` or `__dlpack__`).
            max_ms: the deadline, counted from `started_ns`. The first exit answers in any case.
            started_ns: `time.perf_counter_ns()` when the frame was taken; default: when the
                encoded image is in memory.
            color: the channel order of an array.
            policy: instead of the predictor's own; see `choose_policy`.

        Raises:
            ImageError: the image cannot be read, or lies in device memory and the engine was not
                built for frames like it.
            UsageError: a deadline that is not positive or began on another clock, another color, an
                unknown policy or one whose probabilities are none, or another thread is predicting
                with this object.
            EngineError: the engine failed, or returned something that is no number.
        """
        if max_ms is not None:
            max_ms = plain_ms(max_ms)
        if color != "rgb" and color != "bgr":
            raise UsageError(f"color must be rgb or bgr, not {color!r}")
        loop = self._loop if policy is None else self._loop_of(policy)
        with self._alone():
            self._check_open()
            table = None if max_ms is None else self._know(loop)
            engine, pre, clock = self.engine, self._preprocessing, self.clock
            pixels = ready_pixels(frame, color, pre) if engine.frame_shape is None else None
            name = None
            if pixels is None:
                frame, name = read_frame(frame)
            decoded = began = clock()
            started = began if started_ns is None else check_started(started_ns, began)
            if pixels is None and goes_in_raw(frame, color, engine):
                engine.load_frame(frame)
            else:
                if pixels is None:  # a view of another library's array, say
                    pixels = ready_pixels(frame, color, pre)
                if pixels is None:
                    image = to_image(frame, name, color, pre)
                    decoded = clock()
                    pixels = crop(image, pre, name or "the image")
                engine.load_pixels(pixels[None])
            decode_ms, preprocess_ms = (decoded - began) / 1e6, (clock() - decoded) / 1e6
            return self._answer(loop, started, table, max_ms, decode_ms, preprocess_ms)

    def predict_batch(
        self, frames: Sequence[Frame], *, policy: PolicyChoice = None
    ) -> list[Prediction]:
        """Classify several images at once; those that leave make the next segment's batch smaller.

        More images than the engine's `batch_size` are run in several batches. Each prediction's
        times are its batch's, up to the exit that the image took; `elapsed_ms` counts from the
        first batch on. ONNX Runtime's engine normalises part by part while segment 1 runs, which
        then counts as its time.

        Raises:
            ImageError: one of the images cannot be read.
            UsageError: one image instead of several, an unknown policy or one whose probabilities
                are none, or another thread is predicting with this object.
            EngineError: the engine failed.
        """
        check_several(frames)
        frames = list(frames)
        if not frames:
            return []
        chosen = self.policy if policy is None else resolve_policy(self.bundle, policy)
        with self._alone():
            self._check_open()
            encoded = [read_frame(frame) for frame in frames]
            began = self.clock()
            pre = self.manifest.preprocessing
            pixels: list[Any] = [ready_pixels(frame, "rgb", pre) for frame, _ in encoded]
            others = [i for i, ready in enumerate(pixels) if ready is None]
            images = [to_image(*encoded[i], "rgb", pre) for i in others]
            decoded = self.clock()
            for i, image in zip(others, images, strict=True):
                pixels[i] = crop(image, pre, encoded[i][1] or "the image")
            # of images one below the other, which takes half as long as to stack them
            stacked = np.concatenate(pixels).reshape(len(pixels), pre.size, pre.size, pre.channels)
            ready = self.clock()
            times = (decoded - began) / 1e6, (ready - decoded) / 1e6
            return self._answer_batches(self.engine.load_pixels, stacked, chosen, began, *times)

    def predict_inputs(
        self,
        inputs: NDArray[np.float32],
        *,
        max_ms: float | None = None,
        started_ns: int | None = None,
        policy: PolicyChoice = None,
    ) -> list[Prediction]:
        """Classify images that somebody has preprocessed already, such as a server's client.

        Args:
            inputs: float32 [n, C, H, W], as the bundle's `preprocessing` makes them.
            max_ms: the deadline of a single image, see `predict`; several have none.
            started_ns: see `predict`.
            policy: see `predict`.

        Raises:
            ImageError: another shape or dtype, or numbers that no image is preprocessed to.
            UsageError: a deadline for several images, or as `predict`.
            EngineError: the engine failed.
        """
        if max_ms is not None:
            max_ms = plain_ms(max_ms)
        check_inputs(inputs, self.manifest.preprocessing)
        if max_ms is not None and len(inputs) > 1:
            raise UsageError("a deadline is one image's: give them one by one")
        loop = self._loop if policy is None else self._loop_of(policy)
        with self._alone():
            self._check_open()
            table = None if max_ms is None else self._know(loop)
            started = self.clock()
            if started_ns is not None:
                started = check_started(started_ns, started)
            if len(inputs) > 1:
                return self._answer_batches(self.engine.load, inputs, loop.policy, started)
            self.engine.load(inputs)
            return [self._answer(loop, started, table, max_ms)]

    def stream(
        self, sources: Iterable[str | Path], *, max_ms: float | None = None
    ) -> Iterator[tuple[str, Prediction | ImageError]]:
        """Classify one image file after another; a bad one yields its error and the rest go on.

        Raises:
            UsageError: one file instead of several, or as `predict`.
        """
        check_several(sources)
        for source in sources:
            try:
                yield str(source), self.predict(source, max_ms=max_ms)
            except ImageError as error:
                yield str(source), error

    @property
    def tally(self) -> Tally:
        """The counts that `stats` sums up, to be joined with those of clones."""
        return self._tally

    def set_policy(self, policy: PolicyChoice) -> None:
        """Change the policy; see `choose_policy`."""
        self._use(choose_policy(self.bundle, policy))
        self._tally.forget_confidences()

    def _use(self, chosen: Chosen) -> None:
        loop = self._make_loop(chosen)
        self.chosen, self._loop = chosen, loop  # one step: Ctrl-C

    def _loop_of(self, policy: PolicyChoice) -> Loop:
        """Return the loop of a policy that a call names, which may be the predictor's own."""
        found = choose_policy(self.bundle, policy)
        return self._loop if found.policy is self.policy else self._make_loop(found)

    def _make_loop(self, chosen: Chosen) -> Loop:
        return Loop(self.engine, chosen.policy, self.clock, chosen.guarantee)

    def _know(self, loop: Loop) -> LatencyTable:
        """Return what a deadline rests on, which the loop is told as well."""
        table = self.timing.know(loop.policy, warn)
        loop.rest_on(self.timing.measured)
        return table

    def stats(self) -> Stats:
        """Sum up the predictions so far; see `Stats`.

        Raises:
            BundleError: `calibration.npz`, which drift is measured against, is damaged.
        """
        return self._tally.stats(self.chosen)

    def reset_stats(self) -> None:
        """Count anew, such as for each hour of a stream."""
        self._tally.reset()

    def clone(self) -> Predictor:
        """Return a predictor for another thread, as warm as this one.

        What the engine can share is shared.

        Raises:
            UsageError: this one is closed.
        """
        self._check_open()
        twin = Predictor(self.engine.clone(), self.policy, self.clock)
        twin.timing = self.timing.clone(twin.engine)
        twin._use(self.chosen)
        if self.timing.is_warm:
            with ExitStack() as when_it_fails:
                when_it_fails.enter_context(twin)
                twin.warm_up()
                when_it_fails.pop_all()
        return twin

    def close(self) -> None:
        """Release the engine; again does nothing.

        Raises:
            UsageError: another thread is predicting with this object.
        """
        if not self._closed:
            with self._alone():
                self._closed = True
                self.engine.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a predictor cannot be copied or pickled: clone() it for a thread, and load the bundle "
            "in each process"
        )

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(EngineError) if exception[0] is not None else nullcontext():
            self.close()  # a failure that follows from another is not worth telling

    def _answer(
        self,
        loop: Loop,
        started: int,
        table: LatencyTable | None = None,
        max_ms: float | None = None,
        decode_ms: float = 0.0,
        preprocess_ms: float = 0.0,
    ) -> Prediction:
        """Run the sample loaded, and count; confidences only of the predictor's own policy."""
        timing = self.timing
        table = table or timing.latencies
        found, first = loop(
            started, timing.slow_down, timing.budget, table, max_ms, decode_ms, preprocess_ms
        )
        self.passed = loop.passed
        self._tally.add(found, first if loop is self._loop else None)
        return found

    def _answer_batches(
        self,
        load: Callable[[NDArray[Any]], None],
        images: NDArray[Any],
        policy: Policy,
        started: int,
        *times: float,
    ) -> list[Prediction]:
        """Run all samples, and count; confidences only of the predictor's own policy."""
        found = answer_batches(self.engine, load, images, policy, self.clock, started, *times)
        for prediction, confidence in zip(*found, strict=True):
            self._tally.add(prediction, confidence if policy is self.policy else None)
        return found[0]

    def _alone(self) -> threading.Lock:
        """Return what keeps a second call out.

        A second thread is refused here; one that comes at the same moment waits. The lock itself
        is entered, since Ctrl-C can end any Python function, and must not leave it locked.

        Raises:
            UsageError: another thread, or a policy of this one, is predicting with this object.
        """
        if self._lock.locked():
            raise UsageError("this predictor is busy in another thread: use clone() for each")
        return self._lock

    def _check_open(self) -> None:
        """Refuse to go on when it is closed, be it by another thread while this one came in.

        Raises:
            UsageError: it is.
        """
        if self._closed:
            raise UsageError("this predictor is closed: load the bundle again")
