"""What the tests share: the command line, one trained run and one bundle.

The tests under `core` and `runtime` need no torch: given a bundle in `MATE_EDGE_TEST_BUNDLE` they
run in an environment that has only the core's dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from first import type_first_commands
from hypothesis import settings
from PIL import Image
from warm import Warm

from mate_edge.bundle import (
    Build,
    Bundle,
    OperatingPoint,
    Segment,
    Tensor,
    add_file,
    read_bundle,
)
from mate_edge.cli import main
from mate_edge.decide.softmax import softmax
from mate_edge.errors import EngineNotBuilt
from mate_edge.files import arrays_to_bytes, write_json
from mate_edge.images import normalize
from mate_edge.runtime import engines
from mate_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

settings.register_profile("slow machine", deadline=None)
settings.register_profile("few examples", deadline=None, max_examples=10)
settings.load_profile("slow machine")

CHECKOUT = Path(__file__).parents[1]
LONGEST = ("test_core_python.py", "test_readme.py", "test_distributed.py", "test_resume.py")
"""The files whose tests take long: started last, one process would work while others are idle."""
SHARING = (
    "report", "serve", "test_compare.py", "test_distributed.py", "test_lowered.py",
    "test_packaging.py", "test_resume.py", "test_site.py",
)  # fmt: skip
"""The folders and files whose tests share what takes long to make: one process runs them all."""

Cli = Callable[..., subprocess.CompletedProcess[str]]
MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.hookimpl(tryfirst=True)  # xdist's own reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, and group those that share."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        for name in {item.path.name, item.path.parent.name}.intersection(SHARING):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window, with a camera that shows a test pattern.

    Not for the whole session: while it runs, no other test may run an event loop.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=options)
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def _own_device_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "state"))


WARM = pytest.StashKey[Warm]()


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    """Tell a test process where the one server of warm processes is."""
    if WARM not in node.config.stash:
        node.config.stash[WARM] = server = Warm()
        node.config.add_cleanup(server.close)
    node.workerinput["warm"] = str(node.config.stash[WARM].place)


@pytest.fixture(scope="session")
def warm(pytestconfig: pytest.Config) -> Iterator[Warm]:
    """Processes of `mate-edge` that need not import torch first; see `warm.py`."""
    place = getattr(pytestconfig, "workerinput", {}).get("warm")
    server = Warm(place and Path(place))
    yield server
    server.close()


@pytest.fixture(scope="session")
def cli(warm: Warm) -> Cli:
    """Run `mate-edge ARGUMENTS` in a process of its own."""
    return warm.run


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Like `cli`, in this process: importing torch for a one-line error takes seconds."""

    def run(*arguments: str | Path, cwd: Path = Path()) -> subprocess.CompletedProcess[str]:
        command = ["mate-edge", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(os, "_exit", sys.exit)  # how `run` ends
        monkeypatch.chdir(cwd)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Make a folder that all test processes share: the first that needs it fills it."""
    from filelock import FileLock  # not there where only the core is

    session = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        session = session.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = session / name
        with FileLock(session / f"{name}.lock"):
            if not folder.exists():
                made = tmp_path_factory.mktemp(name)
                fill(made)
                made.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def home(make_once: MakeOnce, cli: Cli) -> Path:
    """The working folder in which a user typed train and export, with the device's state."""
    return make_once("home", lambda folder: type_first_commands(folder, cli))


@pytest.fixture(scope="session")
def run_folder(home: Path) -> Path:
    """A finished run: resnet8 on digits, MATE."""
    return home / "runs" / "digits-resnet8-mate"


@pytest.fixture(scope="session")
def bundle_folder(request: pytest.FixtureRequest) -> Path:
    """The bundle of that run, never to be changed by a test."""
    given = os.environ.get("MATE_EDGE_TEST_BUNDLE")
    if given:
        return Path(given)
    home: Path = request.getfixturevalue("home")
    return home / "bundles" / "digits-resnet8-mate-cpu.mate"


def write_stages(folder: Path, layers: str) -> str:
    """Write a module of a small network's stages into `folder`; return its `--arch`."""
    (folder / "own_stages.py").write_text(
        "from torch import nn\n"
        "def stages(channels, size):\n"
        "    widths = (channels, 8, 16)\n"
        f"    return [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), {layers})\n"
        "            for i, o in zip(widths, widths[1:])]\n"
    )
    return "own_stages:stages"


@pytest.fixture
def without_batch_norm(tmp_path: Path) -> str:
    """The `--arch` of a small network without BatchNorm, for who works in `tmp_path`."""
    return write_stages(tmp_path, "nn.ReLU()")


@pytest.fixture
def with_dropout(tmp_path: Path) -> str:
    """The `--arch` of a small network whose training draws random numbers."""
    return write_stages(tmp_path, "nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(0.2)")


@pytest.fixture
def own_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "own.mate"))


@pytest.fixture(scope="session")
def golden(bundle_folder: Path) -> dict[str, np.ndarray]:
    """The bundle's golden inputs, uint8 [n, H, W, C], and logits [n, K, C]."""
    bundle = read_bundle(bundle_folder)
    return bundle.arrays(bundle.manifest.golden)


@pytest.fixture
def pictures(golden: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A folder with the golden inputs as PNG files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(golden["images"]):
        Image.fromarray(pixels[..., 0]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def built(make_once: MakeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it."""

    def fill(folder: Path) -> None:
        copy = tmp_path_factory.mktemp("copy") / "checkout"
        unwanted = (".*", "build", "*.egg-info", "runs", "bundles", "__pycache__")
        ignore = shutil.ignore_patterns(*unwanted)
        shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=ignore)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy]
        subprocess.run(command, check=True, capture_output=True)

    return make_once("dist", fill)


HALF_WIDTH = 4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA GPU, and with nothing to use it."""
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: True)
    for name in ("tensorrt", "cuda", "cuda.bindings", "pycuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_nvidia_gpu", lambda: False)


class Builder:
    """Stands for `mate_edge.runtime.build`: knows what it built, and which segments are built."""

    def __init__(self) -> None:
        self.built: tuple[int, ...] = ()
        self.done: list[Bundle] = []

    def build_engines(self, bundle: Bundle, unsplit: bool, say: Any, progress: Any) -> None:
        say("building")
        self.done.append(bundle)
        self.built = tuple(range(1, 9))


@pytest.fixture
def builder(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """An engine called tensorrt, with all that it needs, that must be built before it opens."""
    found = Builder()

    class BuiltEngine(OnnxRuntimeEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if not found.built:
                raise EngineNotBuilt("not built on this device: type mate-edge build")
            super().__init__(*arguments, **options)

        def open(self, k: int) -> None:
            if k not in found.built:
                raise EngineNotBuilt("not built on this device: type mate-edge build")
            super().open(k)

    module: Any = types.ModuleType("a_built_engine")
    module.BuiltEngine = BuiltEngine
    monkeypatch.setitem(engines.ENGINES, "tensorrt", "a_built_engine:BuiltEngine")
    for name in ("tensorrt", "pycuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "a_built_engine", module)
    monkeypatch.setitem(sys.modules, "mate_edge.runtime.build", found)  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="session")
def half_bundle(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments in float16 for TensorRT: the border float16, the logits float32."""
    pytest.importorskip("onnx")
    return write_half_bundle(tmp_path_factory.mktemp("half") / "half.mate", bundle_folder)


def write_half_bundle(folder: Path, like: Path) -> Path:
    """Write it for the classes and images of the bundle `like`."""
    folder.mkdir()
    bundle, rng = read_bundle(like), np.random.default_rng(0)
    old, pre = bundle.manifest, bundle.manifest.preprocessing
    sides = (pre.size // 2,) * 2
    images = Tensor(name="images", shape=(pre.channels, pre.size, pre.size), dtype="float32")
    border = Tensor(name="features_1", shape=(HALF_WIDTH, *sides), dtype="float16")
    logits = [
        Tensor(name=f"logits_{k}", shape=(len(old.classes),), dtype="float32") for k in (1, 2)
    ]
    segments = []
    for k, (source, targets) in enumerate([(images, (border, logits[0])), (border, logits[1:])], 1):
        file = add_file(folder, f"segments/{k}.onnx", half_segment(source, tuple(targets), rng))
        segments.append(Segment(file=file, input=source, outputs=tuple(targets)))
    pixels: Any = bundle.arrays(old.golden)["images"]
    manifest = msgspec.structs.replace(
        old,
        precision="fp16",
        build=Build(engine="tensorrt"),
        segments=tuple(segments),
        exits=old.exits[-2:],
        operating_points={},
        unsplit=add_file(folder, "unsplit.onnx", bundle.read(old.unsplit)),
        calibration=add_file(folder, "calibration.npz", bundle.read(old.calibration)),
    )
    with OnnxRuntimeEngine(Bundle(folder, manifest, ""), 1) as engine:
        engine.load(normalize(pixels, pre))
        found = np.stack([engine.run(1), engine.run(2)], axis=1)
    threshold = float(np.sort(softmax(found[:, 0]).max(axis=-1))[3:5].mean())
    balanced = OperatingPoint(
        policy="confidence",
        parameters={"thresholds": [threshold], "temperatures": [1.0, 1.0]},
        val_accuracy=0.0,
        val_mean_flops=1.0,
        val_exit_shares=(0.5, 0.5),
    )
    golden = add_file(folder, "golden.npz", arrays_to_bytes({"images": pixels, "logits": found}))
    exits = tuple(msgspec.structs.replace(exit_, temperature=1.0) for exit_ in manifest.exits)
    write_json(
        folder / "manifest.json",
        msgspec.structs.replace(
            manifest, exits=exits, golden=golden, operating_points={"balanced": balanced}
        ),
    )
    return folder


def half_segment(source: Tensor, targets: tuple[Tensor, ...], rng: np.random.Generator) -> bytes:
    """Return a convolution and a linear head in float16, as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}

    def value(tensor: Tensor) -> Any:
        shape = ["batch", *tensor.shape]
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], shape)

    classes, first = targets[-1].shape[0], source.dtype == "float32"
    side = source.shape[-1] // 2 if first else source.shape[-1]
    weights = {
        "filter": rng.normal(size=(HALF_WIDTH, source.shape[0], 3, 3)) / 3,
        "dense": rng.normal(size=(HALF_WIDTH * side * side, classes)) / side,
    }
    features = targets[0].name if len(targets) == 2 else "features"
    node = helper.make_node
    nodes = [
        node("Cast", [source.name], ["half"], to=TensorProto.FLOAT16),
        node(
            "Conv", ["half", "filter"], ["sum"], strides=[2 if first else 1] * 2, pads=[1] * 4
        ),
        node("Relu", ["sum"], [features]),
        node("Flatten", [features], ["flat"]),
        node("MatMul", ["flat", "dense"], ["answer"]),
        node("Cast", ["answer"], [targets[-1].name], to=TensorProto.FLOAT),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(w.astype(np.float16), name) for name, w in weights.items()]
    graph = helper.make_graph(
        nodes, "half", [value(source)], [value(tensor) for tensor in targets], stored
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
