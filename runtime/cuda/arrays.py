"""Frames that lie on the GPU already, of whatever library: DLPack and `__cuda_array_interface__`.

https://dmlc.github.io/dlpack/latest/c_api.html
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mate_edge.errors import ImageError
from mate_edge.runtime.cuda.cuda import Cuda

DLPACK_HOST = (1, 3)
"""DLPack's numbers of the CPU's memory and of pinned memory, which numpy takes, too."""
DLPACK_CUDA = (2, 13)
"""Of device and managed memory: both have an address for the GPU."""


@dataclass(frozen=True)
class DeviceFrame:
    """A contiguous uint8 array that the GPU can read.

    Attributes:
        address: of its first byte.
        shape: as its owner gives it.
        owner: what keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    owner: Any


def take_frame(frame: Any, cuda: Cuda, stream: int) -> NDArray[np.uint8] | DeviceFrame:
    """Return a frame as a numpy array, or as what lies on the GPU.

    Work that is put into `stream` from now on sees the frame as its owner finished it: a DLPack
    producer makes the stream wait, the stream of a `__cuda_array_interface__` is waited for here.

    Args:
        frame: uint8; numpy, or an object with `__dlpack__` or `__cuda_array_interface__`.
        cuda: the GPU.
        stream: where the frame will be read.

    Raises:
        ImageError: something else, another dtype, on another GPU, or not contiguous.
        EngineError: CUDA failed.
    """
    if isinstance(frame, np.ndarray):
        return frame
    if hasattr(frame, "__dlpack_device__"):
        kind, number = frame.__dlpack_device__()
        if kind in DLPACK_HOST:  # and torch gives no such tensor to a stream
            return np.asarray(np.from_dlpack(frame))
        if kind not in DLPACK_CUDA or number != 0:
            raise ImageError(f"the frame is on another device (DLPack's {kind}, {number})")
        return _from_dlpack(frame.__dlpack__(stream=stream))
    if hasattr(frame, "__cuda_array_interface__"):
        return _from_interface(frame, cuda)
    raise ImageError(
        f"a {type(frame).__name__} is no frame: give numpy, DLPack or __cuda_array_interface__"
    )


def _from_interface(frame: Any, cuda: Cuda) -> DeviceFrame:
    found = frame.__cuda_array_interface__
    shape, strides = tuple(found["shape"]), found.get("strides")
    if found["typestr"] not in ("|u1", "<u1", ">u1") or found.get("mask") is not None:
        raise ImageError(f"a frame must be uint8 without a mask, not {found['typestr']}")
    _check_contiguous(shape, strides)
    if found.get("stream") is not None:
        cuda.stream_wait(found["stream"])
    return DeviceFrame(int(found["data"][0]), shape, frame)


class _Tensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


UNSIGNED = 1  # DLPack's kDLUInt


def _from_dlpack(capsule: Any) -> DeviceFrame:
    """Read a capsule; it keeps its name, so that it frees the tensor itself when it dies."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
    if (tensor.code, tensor.bits, tensor.lanes) != (UNSIGNED, 8, 1):
        raise ImageError(f"a frame must be uint8, not DLPack's {tensor.code} of {tensor.bits} bits")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    _check_contiguous(shape, strides)
    return DeviceFrame(int(tensor.data or 0) + int(tensor.byte_offset), shape, capsule)


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Refuse rows with gaps: one copy brings the frame in. One byte an element."""
    packed = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if strides is not None and any(
        size > 1 and step != whole for size, step, whole in zip(shape, strides, packed, strict=True)
    ):
        raise ImageError(
            f"a frame on the GPU must be contiguous, this one of shape {shape} has the strides "
            f"{tuple(strides)}: copy it first"
        )
