"""The ROS 2 node, with stand-ins for the ROS modules that no test machine has."""

from __future__ import annotations

import array
import importlib
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mate_edge.errors import EngineError, EngineNotBuilt, UsageError

PACKAGE = Path(__file__).parents[2] / "examples" / "ros2" / "mate_edge_ros"
SECOND = 1_000_000_000


class Message(types.SimpleNamespace):
    """A ROS message: fields by name."""


class Classification(Message):
    def __init__(self) -> None:
        super().__init__(header=None, results=[])


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda text, **options: self.lines.append((level, text))


class Node:
    """What the node uses of `rclpy.node.Node`; `given` are its parameters, `now_ns` ROS's time."""

    given: ClassVar[dict[str, Any]] = {}
    now_ns = 1_000 * SECOND

    def __init__(self, name: str) -> None:
        self.name, self.logger = name, Logger()
        self.parameters: dict[str, Any] = {}
        self.published: list[Any] = []

    def declare_parameter(self, name: str, default: Any) -> None:
        value = self.given.get(name, default)
        assert type(value) is type(default), "ROS refuses a parameter of another type"
        self.parameters[name] = value

    def get_parameter(self, name: str) -> Any:
        return Message(value=self.parameters[name])

    def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
        return Message(publish=self.published.append)

    def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> Any:
        return Message(topic=topic, qos=qos)

    def get_logger(self) -> Logger:
        return self.logger

    def get_clock(self) -> Any:
        return Message(now=lambda: Message(nanoseconds=self.now_ns))

    def destroy_node(self) -> None:
        self.destroyed = True


STAND_INS: dict[str, dict[str, Any]] = {
    "rclpy": {},
    "rclpy.executors": {"ExternalShutdownException": type("Shutdown", (Exception,), {})},
    "rclpy.logging": {"get_logger": lambda name: Logger()},
    "rclpy.node": {"Node": Node},
    "rclpy.qos": {
        "HistoryPolicy": Message(KEEP_LAST="last"),
        "ReliabilityPolicy": Message(BEST_EFFORT="best"),
        "QoSProfile": lambda **fields: Message(**fields),
    },
    "sensor_msgs": {},
    "sensor_msgs.msg": {"Image": Message},
    "vision_msgs": {},
    "vision_msgs.msg": {"Classification": Classification, "ObjectHypothesis": Message},
}


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package's modules `messages` and `node`."""
    for name, fields in STAND_INS.items():
        module = types.ModuleType(name)
        vars(module).update(fields)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(PACKAGE))
    messages = importlib.import_module("mate_edge_ros.messages")
    yield Message(messages=messages, node=importlib.import_module("mate_edge_ros.node"))
    for name in [name for name in sys.modules if name.startswith("mate_edge_ros")]:
        del sys.modules[name]


def image(pixels: np.ndarray, encoding: str, padding: int = 0, stamp_ns: int = 0) -> Message:
    """A `sensor_msgs/Image` whose rows end with `padding` bytes, its data as rclpy gives it."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    stamp = Message(sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return Message(
        header=Message(stamp=stamp, frame_id="camera"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=padded.shape[1],
        data=array.array("B", padded.tobytes()),
    )


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "shape", "color"),
    [
        ("rgb8", (4, 6, 3), "rgb"),
        ("bgr8", (4, 6, 3), "bgr"),
        ("rgba8", (4, 6, 4), "rgb"),
        ("bgra8", (4, 6, 4), "bgr"),
        ("mono8", (4, 6), "rgb"),
    ],
)
def test_pixels_come_out_of_a_message_as_they_went_in(
    ros: Any, encoding: str, shape: tuple[int, ...], color: str, padding: int
) -> None:
    pixels = noise(*shape)
    frame, order = ros.messages.to_frame(image(pixels, encoding, padding))
    assert np.array_equal(frame, pixels[..., :3] if len(shape) == 3 else pixels)
    assert order == color


def test_another_encoding_is_a_clear_error(ros: Any) -> None:
    with pytest.raises(ValueError, match="'yuv422' is not among rgb8, bgr8"):
        ros.messages.to_frame(image(noise(4, 6, 2), "yuv422"))


@pytest.mark.parametrize("change", [{"height": 5}, {"step": 17}, {"width": 0}, {"data": b""}])
def test_an_image_with_too_few_bytes_is_a_clear_error(ros: Any, change: dict[str, Any]) -> None:
    message = image(noise(4, 6, 3), "rgb8")
    vars(message).update(change)
    with pytest.raises(ValueError, match="does not fit into"):
        ros.messages.to_frame(message)


def test_an_image_s_age_is_carried_to_the_counter(ros: Any) -> None:
    to_started_ns = ros.messages.to_started_ns
    assert to_started_ns(100 * SECOND, 100 * SECOND + 7_000_000, 5_000_000_000) == 4_993_000_000
    assert to_started_ns(100 * SECOND, 99 * SECOND, 5_000_000_000) == 5_000_000_000
    assert to_started_ns(0, 100 * SECOND, 5_000_000_000) is None


def test_the_likeliest_classes_come_first_under_the_image_s_header(ros: Any) -> None:
    header = Message(frame_id="camera")
    probabilities = np.array([0.1, 0.6, 0.3], np.float32)
    found = ros.messages.to_classification(header, probabilities, ("cat", "dog", "owl"), 2)
    assert found.header is header
    assert [result.class_id for result in found.results] == ["dog", "owl"]
    assert [result.score for result in found.results] == pytest.approx([0.6, 0.3])


@pytest.fixture
def start(ros: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start the node on the real bundle with parameters."""

    def started(**parameters: Any) -> Any:
        monkeypatch.setattr(Node, "given", {"bundle": str(bundle_folder), **parameters})
        return ros.node.Classifier()

    return started


def test_the_node_answers_what_the_predictor_answers(
    start: Any, golden: dict[str, np.ndarray]
) -> None:
    node = start(policy="deepest", top=10)
    assert node.subscription.qos.depth == 1
    for pixels, logits in zip(golden["images"][:4], golden["logits"][:4], strict=True):
        gray = pixels[..., 0]
        node.classify(image(gray, "mono8"))
        node.classify(image(np.dstack([gray] * 3), "bgr8"))
        for answer in node.published[-2:]:
            assert answer.header.frame_id == "camera"
            assert len(answer.results) == 10
            likeliest = node.predictor.manifest.classes[int(logits[-1].argmax())]
            assert answer.results[0].class_id == likeliest
    node.destroy_node()


def test_the_time_that_an_image_spent_on_its_way_counts(start: Any) -> None:
    node = start(policy="deepest", max_ms=100_000.0)
    fresh, stale = Node.now_ns, Node.now_ns - 200 * SECOND
    node.classify(image(noise(40, 40, 3), "rgb8", stamp_ns=fresh))
    assert not [line for line in node.logger.lines if line[0] == "warning"]
    node.classify(image(noise(40, 40, 3), "rgb8", stamp_ns=stale))
    (warning,) = [text for level, text in node.logger.lines if level == "warning"]
    assert "after its stamp, the deadline is 100000 ms; answered by exit 1" in warning
    assert float(warning.split()[0]) >= 200_000
    assert len(node.published) == 2


def test_a_deadline_that_makes_no_sense_is_refused_at_the_start(start: Any) -> None:
    with pytest.raises(UsageError, match="positive number of ms, not -5"):
        start(max_ms=-5.0)


def test_an_image_that_cannot_be_read_is_logged_and_left_out(start: Any) -> None:
    node = start()
    node.classify(image(noise(4, 6, 2), "yuv422"))
    assert not node.published
    assert node.logger.lines[-1][0] == "error"


def test_a_failing_device_ends_the_node(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise EngineError("the device is lost")

    node = start()
    monkeypatch.setattr(node.predictor, "predict", fails)
    with pytest.raises(EngineError):
        node.classify(image(noise(4, 6, 3), "rgb8"))
    assert not node.published


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("no such policy"), 2), (EngineNotBuilt("build it"), 2), (EngineError("busy"), 1)],
    ids=lambda value: type(value).__name__,
)
def test_only_a_failing_device_is_worth_another_start(
    ros: Any, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(ros.node.mate_edge, "load", fails)
    for call in ("init", "try_shutdown"):
        monkeypatch.setattr(sys.modules["rclpy"], call, lambda: None, raising=False)
    assert ros.node.main() == code


def test_a_mistake_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(name: str) -> Any:
        return lambda *values, **fields: Message(kind=name, values=values, **fields)

    names = {
        "launch": ("LaunchContext", "LaunchDescription"),
        "launch.actions": ("DeclareLaunchArgument", "EmitEvent"),
        "launch.events": ("matches_action",),
        "launch.events.process": ("ProcessExited", "ShutdownProcess"),
        "launch.substitutions": ("LaunchConfiguration",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
        "launch_ros.parameter_descriptions": ("ParameterValue",),
    }
    for module, members in names.items():
        made = types.ModuleType(module)
        vars(made).update({name: recorded(name) for name in members})
        monkeypatch.setitem(sys.modules, module, made)
    launch_file = runpy.run_path(str(PACKAGE / "launch" / "classifier.launch.py"))
    node = launch_file["generate_launch_description"]().values[0][-1]
    assert node.respawn
    assert node.respawn_delay > 0  # the time in which an event can end it
    for code, kept_down in ((0, False), (1, False), (-9, False), (2, True)):
        events = node.on_exit(Message(returncode=code, action=node), None)
        assert [event.event.kind for event in events] == ["ShutdownProcess"] * kept_down
        assert all(event.event.process_matcher.values == (node,) for event in events)


def test_the_package_declares_what_its_modules_import() -> None:
    declared = re.findall(r"<exec_depend>(.*)</exec_depend>", (PACKAGE / "package.xml").read_text())
    for source in ("node.py", "messages.py"):
        text = (PACKAGE / "mate_edge_ros" / source).read_text()
        for name in ("rclpy", "sensor_msgs", "vision_msgs"):
            assert f"from {name}" not in text or name in declared
    for file in ("setup.py", "launch/classifier.launch.py"):
        compile((PACKAGE / file).read_text(), file, "exec")
    assert (PACKAGE / "resource" / "mate_edge_ros").exists()


def test_setup_installs_the_node_for_ros2_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (points,) = tmp_path.glob("*.egg-info/entry_points.txt")
    assert "classifier = mate_edge_ros.node:main" in points.read_text()
