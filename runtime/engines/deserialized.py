"""Deserialised TensorRT engines, shared by an engine and its clones, checked before use."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mate_edge.bundle import Tensor
from mate_edge.errors import EngineError, EngineNotBuilt
from mate_edge.runtime.plans import Plans
from mate_edge.runtime.tensorrt_library import Library

DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8"}
"""TensorRT's names of ours."""


@dataclass(frozen=True, eq=False)
class Deserialized:
    """An `ICudaEngine`; it goes when nobody holds this any more, and before its runtime."""

    engine: Any
    runtime: Any


@dataclass(frozen=True)
class Port:
    """An input or output that an engine must have.

    Attributes:
        name: of the tensor.
        is_input: else it is an output.
        dtype: numpy's name.
        shape: with the batch axis.
        free_axes: how many leading axes may have any size.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    free_axes: int = 1

    @staticmethod
    def of(tensor: Tensor, is_input: bool) -> Port:
        """Return the port of a tensor of the manifest."""
        return Port(tensor.name, is_input, tensor.dtype, (1, *tensor.shape))


class SharedEngines:
    """Deserialises each engine once for all clones, as long as one of them holds it.

    Args:
        library: that they are of.
        plans: where they lie.
    """

    def __init__(self, library: Library, plans: Plans) -> None:
        self.library, self.plans = library, plans
        self.lock = threading.Lock()
        self._runtime: Any = None
        self._alive: weakref.WeakValueDictionary[str, Deserialized] = weakref.WeakValueDictionary()

    def get(self, name: str, what: str, ports: Sequence[Port]) -> Deserialized:
        """Return the engine called `name`.

        Args:
            name: see `Plans`.
            what: how errors call it.
            ports: all that it must have, since memory is laid out for them.

        Raises:
            EngineNotBuilt: it was not built for this device, or its file is damaged.
            EngineError: the library refuses it, or its tensors are others.
        """
        with self.lock:
            found = self._alive.get(name)
            if found is None:
                found = self._alive[name] = self._deserialize(name, what, ports)
            return found

    def context(self, engine: Deserialized, fixed: bool) -> Any:
        """Return a context without memory of its own, or None when the library refuses.

        Args:
            engine: from `get`.
            fixed: it serves one batch size, and is recorded as a graph.
        """
        trt = self.library.module
        how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self.lock:
            if not self.library.kind.ahead_of_time:
                return engine.engine.create_execution_context(how)
            config = engine.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(how)
            if fixed:  # lazily, a graph would keep the slower kernels of before they are compiled
                eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                config.dynamic_shapes_kernel_specialization_strategy = eager
            return engine.engine.create_execution_context(config)

    def _deserialize(self, name: str, what: str, ports: Sequence[Port]) -> Deserialized:
        read = self.plans.read(name)
        if read is None:
            raise not_built(self.plans, what)
        if self._runtime is None:
            trt, logger = self.library.module, self.library.logger
            if not self.library.kind.ahead_of_time:  # a parser does it, but only where it builds
                trt.init_libnvinfer_plugins(logger, "")
            self._runtime = trt.Runtime(logger)
        engine = self._runtime.deserialize_cuda_engine(read[1])
        said = self.library.errors(of_this_thread=True)
        if engine is None:
            raise EngineError(
                f"{self.library.title} cannot load the engine of {what} ({said or 'no reason'}): "
                f"type mate-edge build --force {self.plans.bundle.folder}"
            )
        self._check(engine, what, ports)
        return Deserialized(engine, self._runtime)

    def _check(self, engine: Any, what: str, ports: Sequence[Port]) -> None:
        trt = self.library.module
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wrong = found ^ {port.name for port in ports}
        for port in ports:
            if port.name in found:
                mode = trt.TensorIOMode.INPUT if port.is_input else trt.TensorIOMode.OUTPUT
                shape = tuple(engine.get_tensor_shape(port.name))
                if (
                    engine.get_tensor_mode(port.name) != mode
                    or engine.get_tensor_dtype(port.name)
                    != getattr(trt.DataType, DATA_TYPES[port.dtype])
                    or shape[port.free_axes :] != port.shape[port.free_axes :]
                    or len(shape) != len(port.shape)
                ):
                    wrong.add(port.name)
        if wrong:
            raise EngineError(
                f"the engine of {what} has other tensors than its manifest says "
                f"({', '.join(sorted(wrong))}): do not use this bundle"
            )


def not_built(plans: Plans, what: str) -> EngineNotBuilt:
    """Return what to raise when an engine is missing."""
    return EngineNotBuilt(
        f"{what} is not built for {plans.platform.device_key}: type mate-edge build "
        f"{plans.bundle.folder}"
    )
