"""`tensorrt` or `tensorrt_rtx` on a `FakeGpu`: kernels are onnxruntime's, plans are ONNX.

Only what runs engines: compiling is left to the real library, and `compile_to_fake` takes its
place where a plan is needed.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from fake_gpu import FakeGpu, Work

from mate_edge.bundle import Bundle
from mate_edge.runtime.build import BuildReport, build_engines

MAGIC = b"FAKEPLAN"


def compile_to_fake(
    library: Any,
    model: bytes,
    what: str,
    max_batch: int,
    capability: tuple[int, int],
    progress: Callable[[float], None],
) -> bytes:
    """Stand in for `compile_onnx`: later segments want more scratch memory."""
    progress(1.0)
    head = json.dumps({"max_batch": max_batch, "scratch": len(model)}).encode()
    return MAGIC + len(head).to_bytes(4, "little") + head + model


def build_fakes(bundle: Bundle, **options: Any) -> BuildReport:
    """Build a bundle's engines for the fake GPU, in silence."""
    return build_engines(bundle, say=lambda line: None, compiler=compile_to_fake, **options)


@functools.lru_cache(maxsize=32)
def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def make_tensorrt(gpu: FakeGpu, name: str = "tensorrt", version: str = "10.3.0") -> ModuleType:
    """Return the module."""
    module: Any = ModuleType(name)
    module.__version__ = version

    class DataType(enum.Enum):
        FLOAT = 0
        HALF = 1
        UINT8 = 5

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY = 0
        EAGER = 1

    class IRuntimeConfig:
        dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        strategy = ExecutionContextAllocationStrategy.STATIC

        def set_execution_context_allocation_strategy(
            self, strategy: ExecutionContextAllocationStrategy
        ) -> None:
            self.strategy = strategy

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            self.__alive = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    types = {
        "tensor(float)": (DataType.FLOAT, np.dtype(np.float32)),
        "tensor(float16)": (DataType.HALF, np.dtype(np.float16)),
        "tensor(uint8)": (DataType.UINT8, np.dtype(np.uint8)),
    }

    plugins: list[str] = []

    def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
        assert name == "tensorrt"
        plugins.append(namespace)
        return True

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            gpu.needs_to_be_current("deserialize_cuda_engine")
            size = int.from_bytes(serialized_engine[8:12], "little")
            if name == "tensorrt" and "" not in plugins:  # as if each engine had one of NVIDIA's
                self.logger.log(ILogger.ERROR, "IPluginCreator not found in Plugin Registry")
                return None
            if gpu.fails("deserialize_cuda_engine") or not serialized_engine.startswith(MAGIC):
                self.logger.log(ILogger.ERROR, "the plan is not of this version")
                return None
            head = json.loads(serialized_engine[12 : 12 + size])
            return ICudaEngine(self.logger, head, bytes(serialized_engine[12 + size :]))

    class ICudaEngine:
        def __init__(self, logger: ILogger, head: dict[str, int], model: bytes) -> None:
            self.logger, self.max_batch = logger, head["max_batch"]
            self.device_memory_size_v2 = head["scratch"]
            self.session = session(model)
            self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
            self.outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
            self.tensors = {**self.inputs, **self.outputs}
            self.num_io_tensors = len(self.tensors)
            gpu.objects.add(self)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return types[self.tensors[name].type][0]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(n if isinstance(n, int) else -1 for n in self.tensors[name].shape)

        def create_runtime_config(self) -> IRuntimeConfig:
            assert name == "tensorrt_rtx"
            return IRuntimeConfig()

        def create_execution_context(self, strategy: Any = None) -> Any:
            gpu.needs_to_be_current("create_execution_context")
            eager = None
            if name == "tensorrt_rtx":
                kinds = DynamicShapesKernelSpecializationStrategy
                eager = strategy.dynamic_shapes_kernel_specialization_strategy is kinds.EAGER
                strategy = strategy.strategy
            assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
            if gpu.fails("create_execution_context"):
                self.logger.log(ILogger.ERROR, "no context")
                return None
            return IExecutionContext(self, eager)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, eager: bool | None) -> None:
            self.engine, self.eager = engine, eager
            self.addresses: dict[str, int] = {}
            self.shapes = {
                name: engine.get_tensor_shape(name)
                for name in engine.inputs
                if -1 not in engine.get_tensor_shape(name)
            }
            self.scratch = (0, 0)
            self.has_run = False
            """On this memory and with these shapes: what is set up then cannot be recorded."""
            gpu.objects.add(self)

        def set_device_memory(self, memory: int, size: int) -> None:
            self.scratch, self.has_run = (memory, size), False

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if gpu.fails("set_tensor_address") or name not in self.engine.tensors:
                return False
            self.addresses[name] = memory
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            dynamic = self.engine.get_tensor_shape(name)
            fits = len(shape) == len(dynamic) and all(
                size == wanted or (wanted == -1 and 1 <= size <= self.engine.max_batch)
                for size, wanted in zip(shape, dynamic, strict=False)
            )
            if gpu.fails("set_input_shape") or not fits:
                return False
            self.has_run = self.has_run and self.shapes.get(name) == tuple(shape)
            self.shapes[name] = tuple(shape)
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            gpu.needs_to_be_current("execute_async_v3")
            engine, logger = self.engine, self.engine.logger
            if gpu.fails("execute_async_v3"):
                logger.log(ILogger.ERROR, "cask: the launch failed")
                return False
            missing = set(engine.tensors) - set(self.addresses) | set(engine.inputs) - set(
                self.shapes
            )
            if missing:
                logger.log(ILogger.ERROR, f"not specified: {missing}")
                return False
            memory, size = self.scratch
            if memory == 0 or memory % 256 or size < engine.device_memory_size_v2:
                logger.log(ILogger.ERROR, f"no scratch memory: {self.scratch}")
                return False
            label = next(iter(engine.outputs)) + ("" if len(engine.outputs) == 1 else "+logits")
            stream = gpu.streams[int(stream_handle)]
            if stream.captured is None:
                gpu.launched.append(label)
                self.has_run = True
            elif self.eager is False:
                logger.log(ILogger.ERROR, "a graph would keep the kernels of before")
                return False
            elif not self.has_run:
                logger.log(ILogger.ERROR, "the first launch cannot be captured")
                return False
            gpu.enqueue(
                stream, self._work(label, dict(self.addresses), dict(self.shapes), memory, size)
            )
            return True

        def _work(
            self,
            label: str,
            addresses: dict[str, int],
            shapes: dict[str, Any],
            memory: int,
            size: int,
        ) -> Work:
            """Return the kernel on the addresses and shapes of now, which a graph keeps."""
            engine = self.engine
            batch = next(iter(shapes.values()))[0]

            def nbytes(name: str, shape: Any) -> int:
                return int(np.prod(shape)) * types[engine.tensors[name].type][1].itemsize

            def run() -> None:
                gpu.view(memory, size)[:] = np.random.default_rng(0).integers(
                    0, 256, size, np.uint8
                )
                feed = {}
                for name, shape in shapes.items():
                    data = gpu.view(addresses[name], nbytes(name, shape)).copy()
                    feed[name] = data.view(types[engine.tensors[name].type][1]).reshape(shape)
                for name, found in zip(
                    engine.outputs, engine.session.run(list(engine.outputs), feed), strict=True
                ):
                    flat = np.ascontiguousarray(found).reshape(-1).view(np.uint8)
                    gpu.view(addresses[name], flat.nbytes)[:] = flat

            def largest(name: str) -> int:
                shape = engine.get_tensor_shape(name)
                return nbytes(name, [batch if n == -1 else n for n in shape])

            touches = tuple((addresses[name], largest(name)) for name in engine.tensors)
            return Work(label, run, (*touches, (memory, size)))

    module.init_libnvinfer_plugins = init_libnvinfer_plugins
    for kind in (DataType, TensorIOMode, ExecutionContextAllocationStrategy, ILogger, Runtime,
                 ICudaEngine, IExecutionContext, IRuntimeConfig,
                 DynamicShapesKernelSpecializationStrategy):  # fmt: skip
        setattr(module, kind.__name__, kind)
    return module
