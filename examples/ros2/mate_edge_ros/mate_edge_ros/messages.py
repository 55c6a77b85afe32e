"""Between ROS messages and mate-edge: pixels, ages and answers. Needs no cv_bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vision_msgs.msg import Classification, ObjectHypothesis


class Encoding(NamedTuple):
    """How `sensor_msgs/Image` lays a pixel out: bytes of a pixel, and the colours' order."""

    channels: int
    color: Literal["rgb", "bgr"]


ENCODINGS = {
    "rgb8": Encoding(3, "rgb"),
    "bgr8": Encoding(3, "bgr"),
    "rgba8": Encoding(4, "rgb"),
    "bgra8": Encoding(4, "bgr"),
    "mono8": Encoding(1, "rgb"),
}


def to_frame(message: Any) -> tuple[NDArray[np.uint8], Literal["rgb", "bgr"]]:
    """Return the pixels of a `sensor_msgs/Image`, and the order of their channels.

    The pixels are a view of the message where its rows lie close together: uint8 [H, W, 3], or
    [H, W] for `mono8`; an alpha channel is left out.

    Raises:
        ValueError: another encoding, or fewer bytes than the sizes need.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ValueError(
            f"the encoding {message.encoding!r} is not among {', '.join(ENCODINGS)}: set the "
            "camera to one of them, or put image_proc before this node"
        )
    height, width, step = message.height, message.width, message.step
    row = width * encoding.channels
    data = np.frombuffer(message.data, np.uint8)
    if min(height, width) < 1 or step < row or data.size < height * step:
        raise ValueError(
            f"an image of {width}x{height} {message.encoding} with rows of {step} bytes does not "
            f"fit into {data.size} bytes"
        )
    rows = data[: height * step].reshape(height, step)[:, :row]
    if encoding.channels == 1:
        return rows, encoding.color
    return rows.reshape(height, width, encoding.channels)[..., :3], encoding.color


def to_started_ns(stamp_ns: int, now_ns: int, counter_ns: int) -> int | None:
    """Return when an image was taken, on the clock that `Predictor.predict` counts with.

    Args:
        stamp_ns: the image's stamp, on ROS's clock; 0 when the camera sets none.
        now_ns: the time now, on ROS's clock.
        counter_ns: the time now, on `time.perf_counter_ns`.

    Returns:
        `counter_ns` less the image's age; None without a stamp. A stamp in the future (another
        machine's clock) counts as now.
    """
    if stamp_ns == 0:
        return None
    return counter_ns - max(0, now_ns - stamp_ns)


def to_classification(
    header: Any, probabilities: NDArray[np.float32], classes: Sequence[str], top: int
) -> Classification:
    """Return the `top` likeliest classes, likeliest first, under the image's own header."""
    message = Classification()
    message.header = header
    for index in np.argsort(-probabilities, kind="stable")[:top]:
        hypothesis = ObjectHypothesis()
        hypothesis.class_id = classes[index]
        hypothesis.score = float(probabilities[index])
        message.results.append(hypothesis)
    return message
