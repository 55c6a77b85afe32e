"""What `predict` takes: files, bytes, pictures, and frames in host or device memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mate_edge.errors import ImageError, UsageError, first_line
from mate_edge.images import Preprocessing, decode, from_array, read_image, standardize
from mate_edge.runtime.cuda.arrays import DLPACK_HOST
from mate_edge.runtime.deadline import check_max_ms
from mate_edge.runtime.engines.engine import Engine


class CudaArray(Protocol):
    """An array in device memory, such as CuPy's, Numba's or PyTorch's."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Shape, type and address, of version 2 or later."""


class DLPackArray(Protocol):
    """An array that hands itself over by DLPack; one in host memory counts as numpy."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""

    def __dlpack__(self) -> Any:
        """Return the capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return kind and number of the device."""


UINT8 = np.dtype(np.uint8)
OVERSHOOT = 0.25
"""By which share of their range preprocessed numbers may leave it: some filters sharpen edges."""

Frame = str | Path | bytes | Image.Image | NDArray[np.uint8] | CudaArray | DLPackArray


def read_frame(frame: Frame) -> tuple[Frame, str | None]:
    """Bring an encoded image into memory, which a deadline does not count; return its name too.

    An array of another library that lies in host memory becomes a numpy view.

    Raises:
        ImageError: the file cannot be read, or the array is of a kind that numpy does not know.
    """
    if isinstance(frame, np.ndarray):
        return frame, None
    if isinstance(frame, str | Path):
        try:
            return read_image(frame), str(frame)
        except ValueError:  # only a path with a NUL is no path at all
            raise ImageError(f"{str(frame)!r} is no path of a file") from None
    other: Any = frame
    if (
        not isinstance(frame, bytes | Image.Image)
        and hasattr(frame, "__dlpack_device__")
        and other.__dlpack_device__()[0] in DLPACK_HOST
    ):
        try:
            return np.from_dlpack(other), None
        except (BufferError, RuntimeError, TypeError, ValueError) as reason:
            raise ImageError(
                f"a {type(frame).__name__} that numpy cannot take: {first_line(reason)}"
            ) from None
    return frame, None


def to_image(
    frame: Frame, name: str | None, color: str, preprocessing: Preprocessing
) -> Image.Image:
    """Decode or wrap what `read_frame` returned.

    Raises:
        ImageError: it is no image, or it lies in device memory.
    """
    if isinstance(frame, bytes):
        return decode(frame, name, preprocessing)
    if isinstance(frame, Image.Image):
        return standardize(frame)
    if isinstance(frame, np.ndarray):
        return from_array(frame, "bgr" if color == "bgr" else "rgb")
    if device_shape(frame) is not None:
        raise ImageError("frames in device memory are classified one by one: use predict()")
    raise ImageError(f"a {type(frame).__name__} is no image: give a path, bytes, PIL or numpy")


def ready_pixels(
    frame: Frame, color: str, preprocessing: Preprocessing
) -> NDArray[np.uint8] | None:
    """Return a frame that nothing is to be scaled or cut of, uint8 [size, size, channels].

    What Pillow would return, without the 20 us that it takes; None for every other frame.
    """
    if not isinstance(frame, np.ndarray) or preprocessing.resize != preprocessing.size:
        return None
    size = preprocessing.size
    if frame.dtype != UINT8 or frame.shape != (size, size, preprocessing.channels):
        return None
    return frame[:, :, ::-1] if color == "bgr" else frame


def goes_in_raw(frame: Frame, color: str, engine: Engine) -> bool:
    """Say whether the engine preprocesses this frame itself.

    Args:
        frame: from `read_frame`.
        color: the frame's channel order.
        engine: whose `frame_shape` and `frame_color` must be the frame's; a frame in color, which
            the engine turns to gray where the network wants that.

    Raises:
        ImageError: it does not, and the frame lies in device memory, where nobody else can.
    """
    on_host = isinstance(frame, np.ndarray)
    if on_host and engine.frame_shape is None:  # the usual case
        return False
    shape = tuple(frame.shape) if isinstance(frame, np.ndarray) else device_shape(frame)
    if shape is None:
        return False
    takes = "none"
    if engine.frame_shape is not None:
        wanted = (*engine.frame_shape, 3)
        if shape == wanted and color == engine.frame_color and _is_uint8(frame):
            return True
        takes = f"{_sides(wanted)} {engine.frame_color} uint8"
    if on_host:
        return False
    size = f"{shape[1]}x{shape[0]}" if len(shape) > 1 else "WxH"
    raise ImageError(
        f"the frame in device memory is {_sides(shape)} {color}, the engine takes {takes}: type "
        f"mate-edge build --frame {size}, or give a numpy frame"
    )


def check_several(images: object) -> None:
    """Refuse one image where several are meant: a name would be taken for its letters.

    Raises:
        UsageError: it is one, or an array of one.
    """
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise UsageError(
                f"an array of images must be [n, H, W, C], not {list(images.shape)}: give a list "
                "of others, and one image to predict()"
            )
    elif isinstance(images, str | bytes | Path) or not isinstance(images, Iterable):
        raise UsageError(
            f"several images are expected, not a {type(images).__name__}: give a list, and one "
            "image to predict()"
        )


def check_inputs(inputs: NDArray[np.float32], preprocessing: Preprocessing) -> None:
    """Refuse what is no batch of preprocessed images.

    Raises:
        ImageError: no array, another shape or dtype, or numbers that no pixel in 0..255 becomes.
    """
    shape = (preprocessing.channels, preprocessing.size, preprocessing.size)
    wanted = f"preprocessed images must be float32 [n, {', '.join(map(str, shape))}]"
    if not isinstance(inputs, np.ndarray):
        raise ImageError(f"{wanted}, not a {type(inputs).__name__}")
    if inputs.dtype != np.float32 or inputs.shape[1:] != shape or not inputs.size:
        raise ImageError(f"{wanted}, not {inputs.dtype} {list(inputs.shape)}")
    each = list(zip(preprocessing.mean, preprocessing.std, strict=True))
    low = min((0 - mean - OVERSHOOT) / std for mean, std in each)
    high = max((1 - mean + OVERSHOOT) / std for mean, std in each)
    least, most = inputs.min(), inputs.max()
    if not (low <= least and most <= high):  # neither when one of them is no number
        raise ImageError(
            f"the inputs hold numbers from {least:g} to {most:g}, and no image is preprocessed to "
            f"less than {low:.3g} or more than {high:.3g}: scale them by the bundle's mean and std"
        )


def plain_ms(max_ms: float) -> float:
    """Return a deadline as Python's own number: numpy's would make `deadline_missed` numpy's, too.

    Raises:
        UsageError: no positive number.
    """
    if type(max_ms) is float and 0 < max_ms < inf:  # the usual case
        return max_ms
    if not isinstance(max_ms, Real):
        raise UsageError(f"the deadline must be a positive number of ms, not {max_ms!r:.80}")
    try:
        plain = float(max_ms)
    except OverflowError:
        plain = inf
    check_max_ms(plain)
    return plain


def check_started(started_ns: int, now_ns: int) -> int:
    """Return when a deadline began, as Python's own number.

    Raises:
        UsageError: no whole number, or one in the future: of another clock.
    """
    if isinstance(started_ns, Integral) and started_ns <= now_ns:
        return int(started_ns)
    raise UsageError(
        f"started_ns must be a time.perf_counter_ns() that has passed, not {started_ns!r}: other "
        "clocks do not count from the same moment"
    )


def device_shape(frame: object) -> tuple[int, ...] | None:
    """Return the shape of an array in device memory; None for everything else."""
    interface = getattr(frame, "__cuda_array_interface__", None)
    if interface is not None:
        return tuple(interface["shape"])
    if hasattr(frame, "__dlpack_device__") and not isinstance(frame, np.ndarray):
        return tuple(getattr(frame, "shape", ()))
    return None


def _is_uint8(frame: object) -> bool:
    if isinstance(frame, np.ndarray):
        return bool(frame.dtype == np.uint8)
    interface = getattr(frame, "__cuda_array_interface__", None)
    return interface is None or bool(np.dtype(interface["typestr"]) == np.uint8)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
