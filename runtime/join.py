"""Leave out what turns features round at the borders between segments; see `engines/blocked.py`.

ONNX Runtime optimises each segment, as it does for any session, and writes it down. Where a segment
ends with its `ReorderOutput` and all that the next one does with these features is `ReorderInput`,
both go. Where the next one does something else with them, such as adding the shortcut of a residual
block, they pass a `MaxPool` of one pixel first, which goes, too: behind it ONNX Runtime takes them
for blocks, and adds within a convolution, as it does inside of a network. What comes out is
compared with what was exported, on images of noise, before it counts: bit by bit, up to the first
segment behind such a `MaxPool`, whose sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mate_edge import files
from mate_edge.bundle import Bundle, Tensor
from mate_edge.errors import EngineError, UsageError
from mate_edge.runtime.engines import Say
from mate_edge.runtime.engines.blocked import (
    STATE,
    Blocked,
    BlockedSegment,
    blocked_folder,
    blocked_path,
    channels_of_block,
    read_blocked,
    read_segment,
)
from mate_edge.runtime.engines.onnxruntime import (
    BLOCKED,
    OnnxRuntimeEngine,
    make_session,
    session_options,
)
from mate_edge.runtime.state import (
    VARIABLE,
    building_alone,
    forget_engines,
    state_errors,
    write_state,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

DOMAIN = "com.microsoft.nchwc"
"""Of ONNX Runtime's operators on blocks of channels."""
POOLED = "features of the segment before"
"""What the `MaxPool` writes."""
TRIED = (1, 3)
"""Batches for which the segments must answer as those of the bundle do."""
CLOSE = 1e-5
"""How far sums may be off that are rounded in another order, in parts of the largest value."""


def keep_blocked(bundle: Bundle, force: bool, say: Say) -> Blocked:
    """Make the segments whose borders are blocked, and keep them in the device state.

    Args:
        bundle: an opened bundle for the CPU.
        force: make them anew when they are there.
        say: told what was done.

    Raises:
        BundleError: a file of the bundle is missing or altered.
        EngineError: onnxruntime cannot run a segment.
        UsageError: the device state cannot be written.
    """
    folder = blocked_folder(bundle)
    with building_alone(folder, say):
        found = None if force else _kept(bundle)
        new = found is None
        if found is None:
            found = _make(bundle)
            write_state(folder, STATE, found)
    if many := sum(found.borders):
        say(
            f"onnxruntime computes on blocks of {channels_of_block()} channels here, and at {many} "
            f"of {len(found.borders)} borders segments hand them over"
            f"{'' if new else ': made already'}"
        )
    else:
        say(f"nothing to build: onnxruntime runs the segments of {bundle.folder} as they are")
    return found


def try_blocked(bundle: Bundle, force: bool, say: Say) -> None:
    """Do what `keep_blocked` does; only say it when that fails, for there are the bundle's own.

    Raises:
        BundleError: a file of the bundle is missing or altered.
    """
    try:
        keep_blocked(bundle, force, say)
    except (EngineError, UsageError) as error:
        say(f"the segments of {bundle.folder} run as they were exported: {error}")


def _kept(bundle: Bundle) -> Blocked | None:
    """Return what was made before, if it is whole."""
    found = read_blocked(bundle)
    if found is None:
        return None
    ks = range(1, len(found.segments) + 1)
    return found if all(read_segment(bundle, found, k) is not None for k in ks) else None


def _make(bundle: Bundle) -> Blocked:
    """Write the files of the segments; until there is a record, they do not count."""
    folder = blocked_folder(bundle)
    with state_errors(), files.write_errors(folder):
        (folder / f"{STATE}.json").unlink(missing_ok=True)
    for measured in folder.parent.glob(f"onnxruntime-*{BLOCKED}"):
        forget_engines(measured)
    models, borders = [_optimize(bundle, 1)], []
    many = len(bundle.manifest.segments)
    exact = many
    for k in range(1, many):
        after = _optimize(bundle, k + 1)
        joined = _can_be_blocked(bundle.manifest.segments[k].input)
        if joined and not _join(bundle, k, models[-1], after):
            pooled = _optimize(bundle, k + 1, pool=True)
            joined = _join(bundle, k, models[-1], pooled, pool=True)
            if joined:
                after, exact = pooled, min(exact, k)
        borders.append(joined)
        models.append(after)
    segments = []
    if any(borders):
        for k, model in enumerate(models, start=1):
            in_place = _add_in_place(bundle, k, model) if any(borders[k - 1 : k]) else None
            data = model.SerializeToString()
            with state_errors():
                files.write_whole(blocked_path(bundle, k), data)
            segments.append(
                BlockedSegment(bytes=len(data), sha256=files.sha256(data), in_place=in_place)
            )
    found = Blocked(bundle_id=bundle.id, segments=tuple(segments), borders=tuple(borders))
    if segments:
        _check(bundle, found, exact)
    return found


def _optimize(bundle: Bundle, k: int, pool: bool = False) -> ModelProto:
    """Return segment k, behind a `MaxPool` of one pixel, as ONNX Runtime runs it on this CPU."""
    onnx = _import_onnx()
    segment = bundle.manifest.segments[k - 1]
    data = bundle.read(segment.file)
    if pool:
        name, exported = segment.input.name, onnx.load_from_string(data)
        _rename(exported.graph, name, POOLED)
        one_pixel = onnx.helper.make_node("MaxPool", [name], [POOLED], kernel_shape=[1, 1])
        exported.graph.node.insert(0, one_pixel)
        data = exported.SerializeToString()
    options = session_options(1, shared_pool=False)
    with ExitStack() as stack:
        with state_errors(), files.write_errors(blocked_folder(bundle)):
            folder = TemporaryDirectory(prefix=".optimized-", dir=blocked_folder(bundle))
            path = Path(stack.enter_context(folder)) / "segment.onnx"
        try:
            options.optimized_model_filepath = str(path)
        except TypeError:  # it is no UTF-8
            where = files.shown(blocked_folder(bundle))
            raise EngineError(
                f"onnxruntime cannot write into {where}: {VARIABLE} chooses another folder"
            ) from None
        make_session(data, options, f"segment {k} of {bundle.folder}")
        model: ModelProto = onnx.load(path)
    return model


def _can_be_blocked(features: Tensor) -> bool:
    """Say whether these are [C, H, W] in float32, of a whole number of blocks."""
    block = channels_of_block()
    whole = block > 0 and len(features.shape) == 3 and features.shape[0] % block == 0
    return whole and features.dtype == "float32"


def _import_onnx() -> Any:
    try:
        import onnx
    except (ImportError, TypeError) as error:  # protobuf's, of two versions that do not fit
        raise EngineError(f"onnx cannot be imported ({error}): install it again") from None
    return onnx


def _join(
    bundle: Bundle, k: int, before: ModelProto, after: ModelProto, pool: bool = False
) -> bool:
    """Let segment k hand its features over in blocks, if nothing else is done with them."""
    name, nodes = bundle.manifest.segments[k - 1].outputs[0].name, before.graph.node
    ends = [node for node in nodes if name in node.output]
    begins = _read(after, name)
    if not (_all_are(ends, "ReorderOutput") and _all_are(begins, "ReorderInput")):
        return False
    if pool:
        pools = [reader for node in begins for reader in _read(after, node.output[0])]
        if not _all_are(pools, "MaxPool"):
            return False
        begins += pools
    if _read(before, name):
        return False
    source = ends[0].input[0]
    if not any(source in node.output for node in nodes):  # what the segment was given
        return False
    nodes.remove(ends[0])
    _rename(before.graph, source, name)
    for node in begins:
        after.graph.node.remove(node)
        _rename(after.graph, node.output[0], name)
    return True


def _read(model: ModelProto, name: str) -> list[NodeProto]:
    """Return the nodes that read a tensor."""
    return [node for node in model.graph.node if name in node.input]


def _all_are(nodes: Sequence[NodeProto], kind: str) -> bool:
    """Say whether there are any and each is a `kind`, from or to [n, C, H, W] where it reorders."""
    return bool(nodes) and all(
        (node.domain, node.op_type) == (DOMAIN, kind)
        and not any(one.name == "channels_last" and one.i for one in node.attribute)
        for node in nodes
    )


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _add_in_place(bundle: Bundle, k: int, model: ModelProto) -> str | None:
    """Make what the last convolution adds to an output, to be given the memory of the features.

    Inside of a network ONNX Runtime lets the sum take the memory of its summand; what a session
    returns has memory of its own, and the summand is copied there first.

    Returns:
        Its name; None when nothing is added, or what is added may still have to be read.
    """
    name, nodes = bundle.manifest.segments[k - 1].outputs[0].name, model.graph.node
    last = next(node for node in nodes if name in node.output)
    if (last.domain, last.op_type, len(last.input)) != (DOMAIN, "Conv", 4):
        return None
    summand: str = last.input[3]
    if summand in last.input[:3]:  # read while it is overwritten
        return None
    if not any(summand in node.output for node in nodes):  # the segment's own input
        return None
    wanted = set(last.input[:3])
    for node in reversed(nodes):  # in topological order
        if node != last and summand in node.input:
            needed = not wanted.isdisjoint(node.output)
            if not needed or node.domain != DOMAIN:  # others may only view it, and are viewed later
                return None
        if not wanted.isdisjoint(node.output):
            wanted.update(name for name in node.input if name)
    (output,) = (one for one in model.graph.output if one.name == name)
    model.graph.output.add().CopyFrom(output)
    model.graph.output[-1].name = summand
    return summand


def _check(bundle: Bundle, blocked: Blocked, exact: int) -> None:
    """Refuse segments that do not compute what the bundle's do.

    Args:
        bundle: what was exported.
        blocked: what was made of it.
        exact: up to this segment all bits must be the same, behind it but for rounding.

    Raises:
        EngineError: they do not; this would be an error of ours.
    """
    plain = OnnxRuntimeEngine(bundle, blocked=lambda bundle: None)
    ours = OnnxRuntimeEngine(bundle, blocked=lambda bundle: blocked)
    with plain, ours:
        for n in TRIED:
            shape = (n, *bundle.manifest.segments[0].input.shape)
            images = np.random.default_rng(n).standard_normal(shape, np.float32)
            for engine in (plain, ours):
                engine.load(images)
            for k in range(1, plain.num_segments + 1):
                allowed = 0.0 if k <= exact else CLOSE
                same = _are_close(ours.run(k), plain.run(k), allowed)
                if not (same and _are_close(ours.features, plain.features, allowed)):
                    raise EngineError(
                        f"segment {k} of {bundle.folder} answers otherwise on blocks of channels: "
                        "please report this"
                    )


def _are_close(found: NDArray[Any], expected: NDArray[Any], allowed: float) -> bool:
    """Say whether none is off by more than a part of the largest value."""
    return bool(np.abs(found - expected).max() <= allowed * np.abs(expected).max())
