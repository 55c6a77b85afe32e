"""The GPU engine's own promises, on a GPU that does everything as late as it may."""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu, Work
from fake_tensorrt import build_fakes

from mate_edge.bundle import Bundle
from mate_edge.errors import EngineError, ImageError, UsageError
from mate_edge.images import normalize
from mate_edge.runtime.engines.tensorrt import TensorRTEngine
from mate_edge.runtime.plans import FrameFormat
from mate_edge.runtime.predictor import Predictor

Golden = dict[str, np.ndarray]
GpuBundle = Callable[..., Bundle]
MACHINES = {
    "cuda-bindings": {"backend": "cuda-bindings"},
    "cuda-bindings on a Jetson": {"backend": "cuda-bindings", "integrated": True},
    "pycuda": {"backend": "pycuda"},
}


@pytest.fixture(params=MACHINES)
def gpu(request: pytest.FixtureRequest, install: Any) -> FakeGpu:
    return install(**MACHINES[request.param])


@pytest.fixture
def bundle(gpu: FakeGpu, gpu_bundle: GpuBundle) -> Bundle:
    made = gpu_bundle()
    build_fakes(made)
    return made


@pytest.fixture
def images(bundle: Bundle, golden: Golden) -> np.ndarray:
    return normalize(golden["images"], bundle.manifest.preprocessing)


def close_to(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


# what runs, and where it lies


def test_halting_at_an_exit_launches_nothing_of_the_next_segment(
    gpu: FakeGpu, bundle: Bundle, golden: Golden
) -> None:
    with Predictor(TensorRTEngine(bundle)) as predictor:
        predictor.warm_up()
        for _ in range(2):
            gpu.launched.clear()
            assert predictor.predict(golden["images"][0], policy=0.0).exit == 1
            assert gpu.launched == ["features_1+logits"]
            predictor.predict(golden["images"][0], policy="deepest")
            assert gpu.launched[1:] == ["features_1+logits", "features_2+logits", "logits_3"]


def test_a_segments_output_is_the_next_ones_input_and_scratch_memory_is_shared(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray
) -> None:
    with TensorRTEngine(bundle) as engine:
        engine.load(images)
        for k in range(1, 4):
            engine.run(k)
        engine.load(images[:1])
        for k in range(1, 4):
            engine.run(k)
        contexts = [thing for thing in gpu.objects if hasattr(thing, "addresses")]
        assert (
            len(contexts) == 6
        )  # of a segment one for batch 1, which can be recorded, one for more
        for name in ("features_1", "features_2"):
            assert len({c.addresses[name] for c in contexts if name in c.addresses}) == 1
        assert len({context.scratch for context in contexts}) == 1
        assert contexts[0].scratch[1] == max(c.engine.device_memory_size_v2 for c in contexts)
        del contexts


def test_segments_are_recorded_once_and_then_replayed(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray, golden: Golden
) -> None:
    with TensorRTEngine(bundle) as engine:
        for number in range(4):
            before = len(gpu.calls)
            engine.load(images[number : number + 1])
            found = [engine.run(k) for k in range(1, 4)]
            assert all(
                close_to(logits, golden["logits"][number : number + 1, k])
                for k, logits in enumerate(found)
            )
        calls = gpu.calls[before:]
        if engine.graphs.startswith("off"):
            assert "pycuda has none" in engine.graphs
            assert calls.count("execute_async_v3") == 3
        else:
            assert engine.graphs == "on"
            assert calls.count("cudaGraphLaunch") == 3
            assert "execute_async_v3" not in calls


def test_a_segment_that_is_opened_late_moves_the_scratch_memory_of_recorded_ones(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray, golden: Golden
) -> None:
    with TensorRTEngine(bundle) as engine:
        for number in (0, 1, 2):
            engine.load(images[number : number + 1])
            engine.run(1)
        engine.load(images[:2])
        engine.run(1)
        engine.run(2)  # wants more than segment 1 does
        for batch in (images[3:4], images[4:6], images[6:7]):
            engine.load(batch)
            first = int(np.flatnonzero((images == batch[0]).all(axis=(1, 2, 3)))[0])
            rows = np.arange(first, first + len(batch))
            assert close_to(engine.run(1), golden["logits"][rows, 0])
            assert close_to(engine.run(2), golden["logits"][rows, 1])
            assert close_to(engine.run(3), golden["logits"][rows, 2])
        assert engine.graphs == "on" or "pycuda has none" in engine.graphs
    assert leaks(gpu) == []
    assert gpu.violations == []


def test_features_cross_the_border_in_half_precision(
    gpu: FakeGpu, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    pytest.importorskip("onnx", reason="the borders are cast with it here")
    bundle = with_half_borders(gpu_bundle())
    build_fakes(bundle)
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    scale = np.abs(golden["logits"]).max()
    with TensorRTEngine(bundle) as engine:
        for rows in ([0], [1], [2, 4, 5]):
            engine.load(images[rows])
            for k in range(3):
                found = engine.run(k + 1)
                np.testing.assert_allclose(found, golden["logits"][rows, k], atol=0.01 * scale)
        engine.load(np.ones((2, 16, 32, 32), np.float32), 2)  # as the manifest says, whatever comes
        engine.run(2)
    assert gpu.violations == []
    half = 8 * 16 * 32 * 32 * 2  # bytes of 8 samples between segments 1 and 2
    assert half in {len(region.array) for region in gpu.graveyard}


def with_half_borders(bundle: Bundle) -> Bundle:
    """Cast what the segments hand over to float16."""
    import onnx
    from onnx import TensorProto, helper

    from mate_edge.bundle import read_bundle
    from mate_edge.files import sha256

    manifest = json.loads((bundle.folder / "manifest.json").read_bytes())
    for k, segment in enumerate(manifest["segments"]):
        graph_file = bundle.folder / segment["file"]["path"]
        model = onnx.load(graph_file)
        graph = model.graph
        casts: list[tuple[Any, str, str, int]] = []
        if k > 0:
            casts.append((graph.input[0], "in", "half", TensorProto.FLOAT))
            segment["input"]["dtype"] = "float16"
        if len(segment["outputs"]) > 1:
            casts.append((graph.output[0], "out", "full", TensorProto.FLOAT16))
            segment["outputs"][0]["dtype"] = "float16"
        for tensor, side, inner, to in casts:
            name, other = tensor.name, f"{tensor.name}_{inner}"
            for node in graph.node:
                for names in (node.input, node.output):
                    names[:] = [other if value == name else value for value in names]
            tensor.type.tensor_type.elem_type = TensorProto.FLOAT16
            ends = ([name], [other]) if side == "in" else ([other], [name])
            node = helper.make_node("Cast", *ends, to=to)
            graph.node.insert(0 if side == "in" else len(graph.node), node)
        data = model.SerializeToString()
        graph_file.write_bytes(data)
        segment["file"].update(bytes=len(data), sha256=sha256(data))
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    return read_bundle(bundle.folder)


@pytest.mark.parametrize("k", [0, 1], ids=["frame", "images"])
def test_a_thread_in_which_another_gpu_is_current_uses_the_engines_own(
    k: int, install: Any, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    gpu, bundle = install(integrated=True), gpu_bundle()
    build_fakes(bundle, frame=FrameFormat(width=32, height=32, color="rgb"))
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    found: list[np.ndarray] = []

    def use(engine: TensorRTEngine) -> None:
        for prepare in (lambda: engine.open(1), lambda: None):
            gpu.make_current(1)
            prepare()
            if k == 0:
                engine.load_frame(in_color(golden["images"][0]))
            else:
                engine.load(images[:1])
            found.append(engine.run(1))

    with TensorRTEngine(bundle) as engine:
        engine.load(images[:1])
        engine.run(1)
        for moved in (engine, engine.clone()):
            with moved:
                thread = threading.Thread(target=use, args=(moved,))
                thread.start()
                thread.join()
    assert len(found) == 4
    assert all(close_to(logits, golden["logits"][:1, 0]) for logits in found)
    assert gpu.violations == []


def test_on_a_jetson_nothing_is_copied(install: Any, gpu_bundle: GpuBundle, golden: Golden) -> None:
    gpu = install(integrated=True)
    bundle = gpu_bundle()
    build_fakes(bundle)
    with Predictor(TensorRTEngine(bundle)) as predictor:
        predictor.predict(golden["images"][0], policy="deepest")
    assert not [call for call in gpu.calls if "Memcpy" in call]


def test_everything_is_released_and_nothing_was_misused(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray
) -> None:
    with TensorRTEngine(bundle) as engine, engine.clone() as twin:
        for runner in (engine, twin):
            for batch in (images[:1], images[:1], images):
                runner.load(batch)
                runner.run(1)
                runner.keep(np.arange(len(batch))[-1:])
                runner.run(2)
        engine.load(images)
    assert leaks(gpu) == []
    assert gpu.violations == []


# synchronisation: what is not waited for is not there


def in_every_way(bundle: Bundle, images: np.ndarray, golden: Golden, gpu: FakeGpu) -> bool:
    """Run all that the engine can do; say whether every answer was right and nothing misused."""
    right = True
    with TensorRTEngine(bundle) as engine:
        for number in (0, 1, 2):
            engine.load(images[number : number + 1])
            for k in range(1, 4):
                expected = golden["logits"][number : number + 1, k - 1]
                right &= close_to(engine.run(k), expected)
        engine.load(images)
        right &= close_to(engine.run(1), golden["logits"][:, 0])
        engine.keep(np.array([1, 2, 3, 7]))
        right &= close_to(engine.run(2), golden["logits"][[1, 2, 3, 7], 1])
        if engine.frame_shape is not None:
            right &= frames_are_right(engine, golden, gpu)
        engine.load(images)
        engine.keep(np.array([5, 6]))  # still under way when it is closed
    return right and not gpu.violations and not leaks(gpu)


def leaks(gpu: FakeGpu) -> list[str]:
    """Return what is left, after a look at what only an exception's traceback still holds."""
    if gpu.leaks():
        gc.collect()
    return gpu.leaks()


def frames_are_right(engine: TensorRTEngine, golden: Golden, gpu: FakeGpu) -> bool:
    """Classify frames of the host and of the device, which their owner reuses at once."""
    right = True
    for number in (3, 4):
        engine.load_frame(in_color(golden["images"][number]))
        right &= not any(stream.queue for stream in gpu.streams.values())  # it is timed by this
        right &= close_to(engine.run(1), golden["logits"][number : number + 1, 0])
    pixels = in_color(golden["images"][5])
    address, stream = gpu.put(np.zeros_like(pixels)), gpu.user_stream()

    def draw() -> None:
        gpu.view(address, pixels.nbytes)[:] = pixels.reshape(-1)

    gpu.enqueue(stream, Work("copy of the owner", draw))
    engine.load_frame(on_device(address, pixels.shape, stream=stream.handle))
    gpu.view(address, pixels.nbytes)[:] = 0
    return right & close_to(engine.run(1), golden["logits"][5:6, 0])


def on_device(address: int, shape: tuple[int, ...], **more: Any) -> Any:
    interface = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3, **more}
    return SimpleNamespace(__cuda_array_interface__=interface)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_synchronisation_can_be_left_out(
    machine: str, install: Any, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    bundle = gpu_bundle()
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    gpu = install(**MACHINES[machine])
    build_fakes(bundle, frame=FrameFormat(width=32, height=32, color="rgb"))
    assert in_every_way(bundle, images, golden, gpu)
    waits = list(gpu.waits)
    assert len(waits) > 20
    for number, wait in enumerate(waits):
        gpu = install(**MACHINES[machine])
        gpu.drop = number
        try:
            right = in_every_way(bundle, images, golden, gpu)
        except EngineError:
            right = False
        assert not right, f"without the {number}th synchronisation, {wait}, all is well"


# failures


CAPTURE = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
           "cudaGraphDestroy")  # fmt: skip
"""When one of these fails the engine launches plainly."""


@pytest.mark.parametrize("call", CAPTURE)
def test_a_recording_that_fails_is_tried_once_more_while_warming_up(
    call: str, install: Any, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    bundle = gpu_bundle()
    install()
    build_fakes(bundle)
    images = normalize(golden["images"], bundle.manifest.preprocessing)

    def recordings(fail: Callable[[int], bool]) -> tuple[int, str]:
        """Fail the recordings with these numbers; return how many began, and how it ended."""
        gpu, began = install(), 0

        def fails(name: str) -> bool:
            nonlocal began
            began += name == "cudaStreamBeginCapture"
            return name == call and fail(began)

        gpu.fails = fails  # type: ignore[method-assign]
        with Predictor(TensorRTEngine(bundle), "deepest") as predictor:
            predictor.warm_up()
            warm = began
            for _ in range(2):
                predictor.engine.load(images[:1])
                for k in range(1, 4):
                    logits = predictor.engine.run(k)
                    assert close_to(logits, golden["logits"][:1, k - 1])
            assert began == warm
            assert gpu.violations == []
            return began, predictor.engine.graphs

    assert recordings(lambda number: False) == (3, "on")
    assert recordings(lambda number: number == 1) == (4, "on")
    began, how = recordings(lambda number: True)
    assert began == 4  # each of the three parts once, and the first one again
    assert how.startswith("off: CUDA: ")


@pytest.fixture
def _few_objects() -> Iterator[None]:
    """Let `leaks` look at new objects alone: torch's are many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_few_objects")
@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["each kind", "every"]
)
@pytest.mark.parametrize(
    ("machine", "frame"),
    [
        ("cuda-bindings", FrameFormat(width=32, height=32, color="rgb")),
        pytest.param("cuda-bindings on a Jetson", None, marks=pytest.mark.slow),
        ("pycuda", None),
    ],
)
def test_every_call_that_fails_is_a_clear_error_and_everything_is_released(
    machine: str,
    frame: FrameFormat | None,
    every: bool,
    install: Any,
    gpu_bundle: GpuBundle,
    golden: Golden,
) -> None:
    bundle = gpu_bundle()
    if frame is not None:
        pytest.importorskip("onnx", reason="the preprocessing is made with it")
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    gpu = install(**MACHINES[machine])
    build_fakes(bundle, frame=frame)
    gpu.calls.clear()
    assert in_every_way(bundle, images, golden, gpu)
    calls = list(gpu.calls)
    assert {"execute_async_v3", "deserialize_cuda_engine", "set_input_shape"} <= set(calls)
    tried = set()
    for number, call in enumerate(calls):
        began, ended = (
            sum(name in earlier for earlier in calls[:number])
            for name in ("cudaStreamBeginCapture", "cudaStreamEndCapture")
        )
        kind = (*calls[max(number - 1, 0) : number + 2], began > ended)
        if kind in tried and not every:
            continue
        tried.add(kind)
        gpu = install(**MACHINES[machine])
        gpu.fail_at = number
        if call in CAPTURE or began > ended:
            assert in_every_way(bundle, images, golden, gpu), call
        else:
            with pytest.raises(EngineError) as caught:
                pytest.fail(f"{call}, call {number}: {in_every_way(bundle, images, golden, gpu)}")
            assert len(str(caught.value)) > 20, call
            del caught
        assert leaks(gpu) == [], f"{call}, call {number}"
        assert gpu.violations == [], f"{call}, call {number}"


def test_a_predictor_that_cannot_be_loaded_leaves_nothing_behind(
    install: Any, gpu_bundle: GpuBundle
) -> None:
    bundle = gpu_bundle()
    gpu = install()
    build_fakes(bundle)
    gpu.calls.clear()
    Predictor.load(bundle.folder, engine="tensorrt").close()
    calls = list(gpu.calls)
    last = {call: number for number, call in enumerate(calls)}
    for number in (
        last["deserialize_cuda_engine"],
        calls.index("execute_async_v3"),
        last["cudaEventSynchronize"],
    ):
        gpu = install()
        gpu.fail_at = number
        with pytest.raises(EngineError):
            Predictor.load(bundle.folder, engine="tensorrt")
        assert leaks(gpu) == [], calls[number]


def test_what_failed_first_is_what_is_told(
    install: Any, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    gpu = install()
    bundle = gpu_bundle()
    build_fakes(bundle)

    def fail(predictor: Predictor) -> None:
        with predictor:
            gpu.lost = "cudaErrorIllegalAddress"  # so that closing fails, too
            raise ImageError("no image at all")

    with pytest.raises(ImageError, match="no image at all"):
        fail(Predictor.load(bundle.folder, engine="tensorrt"))


def test_a_segment_that_fails_to_launch_yields_no_answer_and_the_next_load_does(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray, golden: Golden, monkeypatch: Any
) -> None:
    with TensorRTEngine(bundle) as engine:
        engine.load(images[:2])
        engine.run(1)
        context = next(thing for thing in gpu.objects if hasattr(thing, "execute_async_v3"))
        with monkeypatch.context() as patch:
            patch.setattr(type(context), "execute_async_v3", lambda self, stream_handle: False)
            with pytest.raises(EngineError, match=r"segment 2 of .* failed to launch"):
                engine.run(2)
        del context
        with pytest.raises(EngineError, match="load one first"):
            engine.run(2)
        engine.load(images[:2])
        assert close_to(engine.run(1), golden["logits"][:2, 0])


def test_an_error_that_is_only_logged_is_no_success(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray
) -> None:
    with TensorRTEngine(bundle) as engine:
        engine.load(images[:1])
        engine.open(1)
        engine._library.logger.log(engine._library.module.ILogger.ERROR, "myelin: out of luck")
        with pytest.raises(EngineError, match="out of luck"):
            engine.run(1)


def test_an_error_of_another_threads_clone_is_left_to_it(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray, golden: Golden
) -> None:
    with TensorRTEngine(bundle) as engine:
        engine.load(images[:1])
        engine.open(1)
        logger, error = engine._library.logger, engine._library.module.ILogger.ERROR
        other = threading.Thread(target=logger.log, args=(error, "not my business"))
        other.start()
        other.join()
        assert close_to(engine.run(1), golden["logits"][:1, 0])
    assert "not my business" in engine._library.errors()


def test_segments_run_only_in_order(gpu: FakeGpu, bundle: Bundle, images: np.ndarray) -> None:
    with TensorRTEngine(bundle) as engine:
        with pytest.raises(EngineError, match="segment 1 .* no input"):
            engine.run(1)
        engine.load(images)
        with pytest.raises(EngineError, match="segment 2 .* no input"):
            engine.run(2)
        with pytest.raises(EngineError, match="takes samples of"):
            engine.load(images[:, :, :5])


def test_too_large_a_batch_says_what_to_rebuild(
    gpu: FakeGpu, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    bundle = gpu_bundle(max_batch=2)
    build_fakes(bundle)
    images = normalize(golden["images"], bundle.manifest.preprocessing)
    message = r"8 samples .* take 2: .* --max-batch 8"
    with TensorRTEngine(bundle) as engine, pytest.raises(UsageError, match=message):
        engine.load(images)
    build_fakes(bundle, max_batch=8)
    with TensorRTEngine(bundle) as engine:
        engine.load(images)
        assert close_to(engine.run(1), golden["logits"][:, 0])


@pytest.mark.parametrize("backend", ["cuda-bindings", "pycuda"])
def test_too_little_memory_says_how_much_was_asked_for(
    backend: str, install: Any, gpu_bundle: GpuBundle
) -> None:
    gpu = install(backend=backend, memory_bytes=10_000)
    bundle = gpu_bundle()
    build_fakes(bundle)
    with pytest.raises(EngineError, match=r"out of memory \(32,768 bytes .*--max-batch"):
        TensorRTEngine(bundle).open(1)
    assert leaks(gpu) == []


@pytest.mark.parametrize("backend", ["cuda-bindings", "pycuda"])
def test_a_lost_device_is_a_clear_error_and_never_an_answer(
    backend: str, install: Any, gpu_bundle: GpuBundle, golden: Golden
) -> None:
    gpu = install(backend=backend)
    bundle = gpu_bundle()
    build_fakes(bundle)
    engine = TensorRTEngine(bundle)
    engine.load(normalize(golden["images"], bundle.manifest.preprocessing))
    gpu.lost = "cudaErrorIllegalAddress"
    for _ in range(2):
        with pytest.raises(EngineError, match=r"illegal memory access .* start again"):
            engine.run(1)
        with pytest.raises(EngineError):
            engine.load(normalize(golden["images"], bundle.manifest.preprocessing))
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.close()
    engine.close()
    assert leaks(gpu) == []


# frames


def in_color(pixels: np.ndarray) -> np.ndarray:
    """Return gray images [..., 1] as a camera gives them; they are gray again on the GPU."""
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=-1))


@pytest.fixture
def framed(gpu: FakeGpu, gpu_bundle: GpuBundle) -> Any:
    pytest.importorskip("onnx", reason="the preprocessing is made with it")
    bundle = gpu_bundle()
    build_fakes(bundle, frame=FrameFormat(width=32, height=32, color="bgr"))
    with TensorRTEngine(bundle) as engine:
        yield engine
    assert leaks(gpu) == []
    assert gpu.violations == []


def test_frames_of_the_host_and_of_the_gpu_are_preprocessed_there(
    gpu: FakeGpu, framed: TensorRTEngine, golden: Golden
) -> None:
    assert (framed.frame_shape, framed.frame_color) == ((32, 32), "bgr")
    for number, pixels in enumerate(in_color(golden["images"][:6])):
        address = gpu.put(pixels)
        kinds = [pixels, on_device(address, pixels.shape, strides=None),
                 FakeTensor(address, pixels.shape), Pinned(pixels)]  # fmt: skip
        framed.load_frame(kinds[number % len(kinds)])
        assert close_to(framed.run(1), golden["logits"][number : number + 1, 0])
        assert close_to(framed.run(2), golden["logits"][number : number + 1, 1])


def test_the_first_frame_after_warming_up_opens_and_allocates_nothing(
    gpu: FakeGpu, framed: TensorRTEngine, golden: Golden
) -> None:
    predictor = Predictor(framed, "deepest")
    predictor.warm_up()
    before = len(gpu.calls)
    predictor.predict(in_color(golden["images"][0]), color="bgr")
    calls = set(gpu.calls[before:])
    assert not calls & {"deserialize_cuda_engine", "create_execution_context", "cudaMalloc",
                        "cudaFree", "cudaGraphInstantiate"}  # fmt: skip
    assert framed.graphs != "on" or "execute_async_v3" not in calls


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((32, 31, 3), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        "frame.png",
        on_device(4096, (32, 32, 1)),
        on_device(4096, (32, 32, 3), strides=(192, 3, 1)),
        on_device(4096, (32, 32, 3), typestr="<f4"),
    ],
)
def test_a_frame_of_another_kind_is_a_clear_error(frame: Any, framed: TensorRTEngine) -> None:
    with pytest.raises(ImageError):
        framed.load_frame(frame)
    with pytest.raises(EngineError, match="load one first"):
        framed.run(1)


def test_without_an_engine_for_frames_it_says_what_to_type(
    gpu: FakeGpu, bundle: Bundle, images: np.ndarray
) -> None:
    with TensorRTEngine(bundle) as engine:
        assert engine.frame_shape is None
        engine.load(images[:1])
        with pytest.raises(EngineError, match="--frame WIDTHxHEIGHT"):
            engine.load_frame(np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(EngineError, match="load one first"):
            engine.run(1)


class Pinned:
    """A DLPack producer in pinned memory, which as torch's knows no stream."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape = pixels, pixels.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return (3, 0)

    def __dlpack__(self, stream: int | None = None, **options: Any) -> Any:
        assert stream is None, "it is the host's"
        return self.pixels.__dlpack__(**options)


class FakeTensor:
    """A DLPack producer on the GPU, laid out as the standard's C structures say."""

    def __init__(self, address: int, shape: tuple[int, ...], bits: int = 8) -> None:
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.memory = ctypes.create_string_buffer(80)
        head = np.zeros(1, np.dtype(
            [("data", "u8"), ("device", "i4", 2), ("ndim", "i4"), ("code", "u1"), ("bits", "u1"),
             ("lanes", "u2"), ("shape", "u8"), ("strides", "u8"), ("offset", "u8")]
        ))  # fmt: skip
        head["data"], head["device"], head["ndim"] = address - 64, (2, 0), len(shape)
        head["code"], head["bits"], head["lanes"], head["offset"] = 1, bits, 1, 64
        head["shape"] = ctypes.addressof(self.shape)
        ctypes.memmove(self.memory, head.tobytes(), head.nbytes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream is not None, "the producer is told who reads"
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
        self.name = ctypes.create_string_buffer(b"dltensor")
        return make(ctypes.addressof(self.memory), ctypes.addressof(self.name), None)
