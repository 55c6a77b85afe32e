"""The node: images in, classes out, each within its deadline or marked in the log as late."""

from __future__ import annotations

import time

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification

import mate_edge
from mate_edge.errors import EngineError, EngineNotBuilt, ImageError, MateEdgeError
from mate_edge.runtime.deadline import check_max_ms
from mate_edge_ros.messages import to_classification, to_frame, to_started_ns

NEWEST_ONLY = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
)
"""An image that arrives while another is classified takes the place of the one that waits."""

QUIET_S = 5.0


class Classifier(Node):
    """Subscribes `image`, publishes `classification`.

    Parameters: `bundle` (a folder), `max_ms` (the deadline from the image's stamp on; 0 for none),
    `policy`, `engine` (the bundle's own when empty) and `top` (how many classes are published).
    """

    def __init__(self) -> None:
        super().__init__("classifier")
        for name, default in (("bundle", ""), ("policy", ""), ("engine", "")):
            self.declare_parameter(name, default)
        self.declare_parameter("max_ms", 0.0)
        self.declare_parameter("top", 1)
        self.max_ms: float | None = self._parameter("max_ms") or None
        check_max_ms(self.max_ms)
        self.top: int = self._parameter("top")
        self.predictor = mate_edge.load(
            self._parameter("bundle"),
            policy=self._parameter("policy") or None,
            engine=self._parameter("engine") or None,
            max_ms=self.max_ms,
            shared_pool=True,  # as bench measures
        )
        self.publisher = self.create_publisher(Classification, "classification", 1)
        self.subscription = self.create_subscription(Image, "image", self.classify, NEWEST_ONLY)
        self.get_logger().info(f"{self.predictor.bundle.folder}: {self.predictor.engine.device}")

    def _parameter(self, name: str):
        return self.get_parameter(name).value

    def classify(self, message: Image) -> None:
        """Classify one image and publish the answer; an image that cannot be read is left out.

        Raises:
            EngineError: the device failed. The node ends, and its launch file starts it again.
        """
        stamp = message.header.stamp
        started_ns = to_started_ns(
            stamp.sec * 1_000_000_000 + stamp.nanosec,
            self.get_clock().now().nanoseconds,
            time.perf_counter_ns(),
        )
        try:
            frame, color = to_frame(message)
            found = self.predictor.predict(
                frame, max_ms=self.max_ms, started_ns=started_ns, color=color
            )
        except (ValueError, ImageError) as error:
            self.get_logger().error(str(error), throttle_duration_sec=QUIET_S)
            return
        if found.deadline_missed:
            self.get_logger().warning(
                f"{found.elapsed_ms:.1f} ms after its stamp, the deadline is {self.max_ms:g} ms; "
                f"answered by exit {found.exit}",
                throttle_duration_sec=QUIET_S,
            )
        classes = self.predictor.manifest.classes
        self.publisher.publish(
            to_classification(message.header, found.probabilities, classes, self.top)
        )

    def destroy_node(self) -> None:
        """Release the engine too."""
        self.predictor.close()
        super().destroy_node()


def main() -> int:
    """Run the node until it is interrupted.

    Returns:
        The exit code: 2 for what somebody must mend, such as a parameter or an engine that is not
        built; 1 when the device failed at the start, as it may before all of the system is up.
    """
    rclpy.init()
    try:
        node = Classifier()
    except MateEdgeError as error:
        get_logger("classifier").fatal(str(error))
        rclpy.try_shutdown()
        may_pass = isinstance(error, EngineError) and not isinstance(error, EngineNotBuilt)
        return 1 if may_pass else error.exit_code
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
