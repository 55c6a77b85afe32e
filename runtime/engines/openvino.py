"""The other CPU engine: OpenVINO, one compiled model a segment.

Threads are OpenVINO's own. Each segment reads its input where the one before wrote its output, so
nothing is copied between them but the rows that stay.
"""

from __future__ import annotations

import io
import platform
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError
from mate_edge.runtime.engines.engine import Engine, cpu_threads

CONFIG = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",  # else what the CPU is fastest in, such as bf16
}


class OpenVinoEngine(Engine):
    """Runs segments with OpenVINO on the CPU.

    Args:
        bundle: an opened bundle for the CPU.
        threads: of one segment; None chooses as `cpu_threads`.
        shared_pool: has no effect: OpenVINO's segments share their threads in any case.

    Raises:
        EngineError: the bundle is for a GPU.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, shared_pool: bool = False
    ) -> None:
        super().__init__(bundle)
        if bundle.manifest.build.engine != "onnxruntime":
            raise EngineError(
                f"{bundle.folder} is for {bundle.manifest.target}, not for OpenVINO: use --engine "
                "onnxruntime, or export it with --target cpu"
            )
        self.threads = cpu_threads(bundle) if threads is None else threads
        version = openvino.__version__.split("-")[0]
        self.device = f"OpenVINO {version} on the CPU, threads: {self.threads}"
        self.device_key = f"openvino-{version}-{platform.machine()}-t{self.threads}"
        self._core = openvino.Core()
        self._compiled: dict[int, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._requests: dict[int, Any] = {}
        self._features: Any = None

    def open(self, k: int) -> None:
        """See `Engine.open`."""
        if k in self._requests:
            return
        if k not in self._compiled:
            data = self.bundle.read(self.bundle.manifest.segments[k - 1].file)
            config = {**CONFIG, "INFERENCE_NUM_THREADS": self.threads}
            try:
                model = self._core.read_model(io.BytesIO(data))
                self._compiled[k] = self._core.compile_model(model, "CPU", config)
            except RuntimeError as error:
                what = f"segment {k} of {self.bundle.folder}"
                raise EngineError(f"OpenVINO cannot load {what}: {_reason(error)}") from None
        self._requests[k] = self._compiled[k].create_infer_request()

    def load(self, inputs: NDArray[np.generic], k: int = 1) -> None:
        """See `Engine.load`."""
        self._features = openvino.Tensor(np.ascontiguousarray(inputs), shared_memory=True)

    def run(self, k: int) -> NDArray[np.float32]:
        """See `Engine.run`."""
        self.open(k)
        request = self._requests[k]
        try:
            request.set_input_tensor(self._features)
            request.start_async()  # `infer` would copy what comes out
            request.wait()
        except (RuntimeError, TypeError) as error:
            raise EngineError(
                f"segment {k} of {self.bundle.folder} failed: {_reason(error)}"
            ) from None
        last = len(self.bundle.manifest.segments[k - 1].outputs) - 1
        self._features = request.get_output_tensor(0)
        logits: NDArray[np.float32] = request.get_output_tensor(last).data.copy()
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See `Engine.keep`."""
        if self._features is not None:
            self._features = openvino.Tensor(self._features.data[rows])

    def clone(self) -> OpenVinoEngine:
        """See `Engine.clone`: the compiled models are shared, requests and features are not."""
        twin = object.__new__(OpenVinoEngine)
        twin.__dict__.update(self.__dict__)
        twin._forget()
        return twin

    def close(self) -> None:
        """See `Engine.close`."""
        self._compiled = {}
        self._forget()


def _reason(error: Exception) -> str:
    """Return the last line that says something: the others name source files of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
