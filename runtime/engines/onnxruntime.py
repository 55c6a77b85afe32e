"""The CPU engine: one ONNX Runtime session a segment.

A session owns a thread pool whose idle workers spin and steal the cores from the next segment's:
with default options the segments of one model run 2 to 4 times slower than the unsplit model. So
spinning is off, or all sessions share one pool, and small networks get one thread. What
`mate-edge build` made of the segments on this CPU is run in their place, see `blocked.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, first_line
from mate_edge.images import normalize
from mate_edge.runtime.engines.blocked import (
    Blocked,
    blocked_path,
    channels_of_block,
    from_blocks,
    read_blocked,
    read_segment,
    to_blocks,
)
from mate_edge.runtime.engines.bound import Several, Single
from mate_edge.runtime.engines.engine import Engine, cpu_threads
from mate_edge.warn import warn

_shared_pool_made = False
"""Once it is, onnxruntime makes every session of the process use it."""

BLOCKED = "-blocked"
"""At the end of the device key where the segments are those that were built for this CPU."""

AT_ONCE = 16
"""Samples of a batch: what the layers make of more falls out of the caches before it is read."""

ROUNDS_FP16 = (1, 30)
"""Before this version QuantizeLinear cuts fp16 off and does not round (its issue 22741)."""


class OnnxRuntimeEngine(Engine):
    """Runs segments with ONNX Runtime on the CPU.

    Args:
        bundle: an opened bundle, of any target and precision.
        threads: of one segment; None chooses by the network's FLOPs and the CPU's cores.
        shared_pool: let all sessions of this process share one thread pool. It is faster by 2 to
            20 % with several threads, but it is process-wide and its size is set only once: for
            the command line and servers, not for a library inside somebody's process.
        blocked: finds what `mate-edge build` made of the segments here, if it did.

    Raises:
        EngineError: this ONNX Runtime is too old for an int8 bundle of an NVIDIA target.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        shared_pool: bool = False,
        blocked: Callable[[Bundle], Blocked | None] = read_blocked,
    ) -> None:
        super().__init__(bundle)
        for_others = bundle.manifest.build.engine != "onnxruntime"
        if for_others and bundle.manifest.precision == "int8":
            check_rounding(f"{bundle.folder}, an int8 bundle for {bundle.manifest.target},")
        if threads is None:
            threads = cpu_threads(bundle)
        self.threads = threads
        found = None if for_others or self.num_segments < 2 else blocked(bundle)
        self._blocked = found if found is not None and found.segments else None
        self._options = session_options(
            threads, shared_pool, as_written=for_others, optimize=self._blocked is None
        )
        pool = "" if self._options.use_per_session_threads else "-shared"
        self.device = f"onnxruntime {onnxruntime.__version__} on the CPU, threads: {threads}"
        self.device_key = (
            f"onnxruntime-{onnxruntime.__version__}-{platform.machine()}-t{threads}{pool}"
            f"{BLOCKED if self._blocked is not None else ''}"
        )
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        self._single: dict[int, Single] = {}
        self._several: dict[int, Several] = {}
        self.at_once = AT_ONCE
        """How many samples of a batch go through a segment at once."""
        self._features: NDArray[np.generic] | None = None
        self._rows: NDArray[np.intp] | None = None
        self._next = 1

    def open(self, k: int) -> None:
        """See `Engine.open`."""
        if k not in self._sessions:
            self._sessions[k] = self._session(k)

    def _session(self, k: int) -> onnxruntime.InferenceSession:
        model = None
        if self._blocked is not None:
            model = read_segment(self.bundle, self._blocked, k)
            if model is None:
                self._run_as_exported(k)
        if model is None:
            model = self.bundle.read(self.bundle.manifest.segments[k - 1].file)
        return make_session(model, self._options, f"segment {k} of {self.bundle.folder}")

    def _run_as_exported(self, k: int) -> None:
        """Go on with the bundle's own segments, as segment k of the others is no good."""
        warn(
            f"{blocked_path(self.bundle, k)} is damaged: mate-edge build makes it anew, until then "
            f"{self.bundle.folder} runs as it was exported"
        )
        plain = {
            "device_key": self.device_key.removesuffix(BLOCKED),
            "_options": session_options(self.threads, shared_pool=False),
            "_blocked": None,
            "_features": None if self._features is None else self.features,
            **{"_sessions": {}, "_single": {}, "_several": {}, "_rows": None},
        }
        self.__dict__.update(plain)  # one step: Ctrl-C, and clones that are made meanwhile
        for earlier in range(1, k):
            self.open(earlier)

    def load(self, inputs: NDArray[np.generic], k: int = 1) -> None:
        """See `Engine.load`."""
        if (block := self._block(k)) is not None:
            inputs = to_blocks(inputs, block)
        self._features, self._rows, self._next = inputs, None, k

    def load_pixels(self, pixels: NDArray[np.uint8]) -> None:
        """See `Engine.load_pixels`.

        One image is normalised where segment 1 reads it, several are part by part as they are run.
        """
        single = self._single.get(1)
        if len(pixels) > 1:
            self._features, self._rows, self._next = pixels, None, 1
        elif single is None:
            super().load_pixels(pixels)
        else:
            normalize(pixels, self.bundle.manifest.preprocessing, single.source)
            self._features, self._rows, self._next = single.source, None, 1

    def run(self, k: int) -> NDArray[np.float32]:
        """See `Engine.run`."""
        single = self._single.get(k) or self._bind(k)
        logits: NDArray[np.float32]
        try:
            if self._features is single.source or single.takes(self._features):
                single.session.run_with_iobinding(single.binding)
                self._features, logits = single.features, single.logits.copy()
            else:
                self._features, logits = self._several[k].run(
                    self._features, self._rows, self.at_once, backwards=k % 2 == 0
                )
                self._rows = None
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            raise self._failure(k, error) from None
        self._next = k + 1
        return logits

    def _bind(self, k: int) -> Single:
        """Give segment k its memory; one sample's input is where segment k - 1 writes."""
        self.open(k)
        segment = self.bundle.manifest.segments[k - 1]
        source = self._single[k - 1].features if k - 1 in self._single else None
        in_place = None if self._blocked is None else self._blocked.segments[k - 1].in_place
        pre = self.bundle.manifest.preprocessing if k == 1 else None
        self._several[k] = Several(self._sessions[k], segment, in_place, pre)
        try:
            single = Single(self._sessions[k], segment, source, in_place)
        except Exception as error:  # a manifest that names other tensors than the model has
            raise self._failure(k, error) from None
        self._single[k] = single  # after all else: Ctrl-C
        return single

    def _failure(self, k: int, error: Exception) -> EngineError:
        reason = first_line(error)
        return EngineError(f"segment {k} of {self.bundle.folder} failed: {reason}")

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See `Engine.keep`."""
        if self._features is None:
            return
        rows = (np.arange(len(self._features)) if self._rows is None else self._rows)[rows]
        if len(rows) < 2:
            self._features, self._rows = self._features[rows], None
        else:
            self._rows = rows  # taken as they are needed, see `Several`

    @property
    def features(self) -> NDArray[np.generic]:
        """What the next segment will be run on: [n, ...], in the dtype of its input; a copy."""
        assert self._features is not None, "nothing is loaded"
        features: NDArray[np.generic] = self._features
        features = features.copy() if self._rows is None else features[self._rows]
        block = self._block(self._next)
        return features if block is None else from_blocks(features, block)

    def _block(self, k: int) -> int | None:
        """Return the channels in a block of what segment k reads; None: it is [n, C, H, W]."""
        blocked = self._blocked
        if blocked is None or not 1 < k <= self.num_segments or not blocked.borders[k - 2]:
            return None
        return channels_of_block()

    def clone(self) -> OnnxRuntimeEngine:
        """See `Engine.clone`: the sessions are shared, the features are not."""
        twin = object.__new__(OnnxRuntimeEngine)
        twin.__dict__.update(self.__dict__)
        twin._single, twin._several, twin._features, twin._rows = {}, {}, None, None
        return twin

    def close(self) -> None:
        """See `Engine.close`."""
        self._sessions, self._single, self._several = {}, {}, {}
        self._features = self._rows = None


def check_rounding(what: str) -> None:
    """Refuse an ONNX Runtime that would answer wrongly where fp16 is quantised.

    Raises:
        EngineError: it is older than `ROUNDS_FP16`; it cannot run `what`.
    """
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if found < ROUNDS_FP16:
        wanted = ".".join(str(part) for part in ROUNDS_FP16)
        raise EngineError(
            f"onnxruntime {onnxruntime.__version__} quantises fp16 wrongly and cannot run {what} "
            f"on a CPU: pip install 'onnxruntime>={wanted}', or export with --precision fp16"
        )


def session_options(
    threads: int, shared_pool: bool, as_written: bool = False, optimize: bool = True
) -> onnxruntime.SessionOptions:
    """Return options under which the sessions of several segments do not hinder each other.

    Args:
        threads: of one segment.
        shared_pool: see `OnnxRuntimeEngine`.
        as_written: compute QuantizeLinear and DequantizeLinear where they stand. Else ONNX Runtime
            fuses them for its own int8 kernels, and from 1.21 on quantises fp16 biases with scales
            that overflow (its pass WeightBiasQuantization).
        optimize: the models; False for what ONNX Runtime has optimised and written before.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    global _shared_pool_made
    if shared_pool and threads > 1 and not _shared_pool_made:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _shared_pool_made = True
    if _shared_pool_made:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def make_session(
    model: bytes, options: onnxruntime.SessionOptions, what: str
) -> onnxruntime.InferenceSession:
    """Make a session of a model's bytes.

    Raises:
        EngineError: ONNX Runtime refuses it.
    """
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        raise EngineError(f"onnxruntime cannot load {what}: {first_line(error)}") from None
