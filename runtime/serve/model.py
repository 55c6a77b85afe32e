"""One version of a model that is loaded: a bundle with a predictor for each worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mate_edge.decide.drift import FINE, Drift
from mate_edge.errors import ImageError
from mate_edge.images import Preprocessing, crop, decode, from_array, normalize
from mate_edge.runtime.metrics import Metrics
from mate_edge.runtime.points import DEEPEST, kept_point, kept_points
from mate_edge.runtime.policy import Chosen, choose_policy
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.predictor import Predictor
from mate_edge.runtime.serve.outputs import choose_outputs, respond
from mate_edge.runtime.serve.protocol import BYTES, Tensor, parse_infer, take_parameters
from mate_edge.runtime.serve.reply import Refusal, Reply, to_json
from mate_edge.runtime.stats import Tally

FRAMES, ENCODED = "frames", "encoded"
"""The inputs beside the preprocessed one, which has the bundle's own name."""
PARAMETERS = ("max_ms", "policy")
WITHOUT_EFFECT = frozenset(("timeout", "priority", "sequence_id", "sequence_start", "sequence_end"))
"""What Triton's clients send of its scheduler, which is not this server's."""
MAX_IMAGES = 128
"""In one request: what its worker does before it looks at the next request is bounded."""
MOST_POLICIES = 256
"""That are kept at hand: any threshold is one."""
LARGEST_NAME = 64
DRIFT_WINDOW = 5000


@dataclass
class Figures:
    """What a worker counts for `stats`: requests, images, and ns."""

    succeeded: int = 0
    failed: int = 0
    failed_ns: int = 0
    images: int = 0
    total_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    last_ms: int = 0

    def add(self, images: int, started_ns: int, taken_ns: int) -> None:
        """Count a request that arrived and was taken up by its worker at those times."""
        now = time.perf_counter_ns()
        self.succeeded += 1
        self.images += images
        self.total_ns += now - started_ns
        self.queue_ns += taken_ns - started_ns
        self.compute_ns += now - taken_ns
        self.last_ms = int(time.time() * 1000)

    @contextmanager
    def counted(self, started_ns: int) -> Iterator[None]:
        """Count a request that fails."""
        try:
            yield
        except Exception:
            self.failed += 1
            self.failed_ns += time.perf_counter_ns() - started_ns
            raise


class Model:
    """A loaded version; `predictors[i]` is worker i's alone.

    Args:
        name: of the model.
        version: of the model.
        predictors: clones of one another, warmed up, latencies known.
        engine: the name of their engine.
        metrics: counts predictions.
        max_ms: the deadline of a request that names none.
    """

    def __init__(
        self,
        name: str,
        version: str,
        predictors: Sequence[Predictor],
        engine: str,
        metrics: Metrics,
        max_ms: float | None,
    ) -> None:
        self.name, self.version, self.engine = name, version, engine
        self.predictors, self.metrics, self.max_ms = predictors, metrics, max_ms
        first = predictors[0]
        self.bundle, self.manifest = first.bundle, first.manifest
        self.input = first.manifest.segments[0].input
        own = {self.input.name: "FP32"}
        self.inputs = own | {FRAMES: "UINT8", ENCODED: BYTES} | own
        """The datatype of each input that a request may give: one of them."""
        self._marks = [0] * FINE, [0] * FINE
        self.figures = [Figures() for _ in predictors]
        self.default = Path(first.chosen.name).name
        """The policy of a request that names none; of a file without its folder."""
        self._policies: dict[str | float, Chosen] = {self.default: first.chosen}

    def close(self) -> None:
        """Release the engines."""
        with ExitStack() as stack:
            for predictor in self.predictors:
                stack.callback(predictor.close)

    def infer(self, worker: int, body: bytes, header_length: str | None, started_ns: int) -> Reply:
        """Answer an `infer` request of the protocol.

        Args:
            worker: whose predictor runs.
            body: all of it; see `parse_infer`.
            header_length: see `parse_infer`.
            started_ns: when the request arrived; deadlines count from then.

        Raises:
            Refusal: malformed, or not for this model.
            ImageError: an image that cannot be read.
            UsageError: an unknown policy.
            EngineError: the engine failed.
        """
        taken_ns = time.perf_counter_ns()
        with self.figures[worker].counted(started_ns):
            request = parse_infer(body, header_length)
            tensor = self._only_input(request.inputs)
            meant = {name: value for name, value in request.parameters.items()
                     if name not in WITHOUT_EFFECT}  # fmt: skip
            max_ms, policy = take_parameters(meant, (*PARAMETERS, "binary_data_output"))
            asked = choose_outputs(request)
            found = self._predict(worker, tensor, max_ms, policy, started_ns)
            classes = self.manifest.classes
            reply = respond(self.name, self.version, classes, request, asked, found)
        self.figures[worker].add(len(found), started_ns, taken_ns)
        return reply

    def classify(
        self, worker: int, image: bytes, parameters: Mapping[str, Any], started_ns: int
    ) -> Reply:
        """Answer with one encoded image's `Prediction` as JSON.

        Raises:
            ImageError: it cannot be read.
            Refusal, UsageError: a parameter that makes no sense.
            EngineError: the engine failed.
        """
        taken_ns = time.perf_counter_ns()
        with self.figures[worker].counted(started_ns):
            max_ms, policy = take_parameters(parameters, PARAMETERS)
            tensor = Tensor(ENCODED, BYTES, (1,), [image])
            found = self._predict(worker, tensor, max_ms, policy, started_ns)[0]
        self.figures[worker].add(1, started_ns, taken_ns)
        return to_json(
            {
                "model": self.name,
                "version": self.version,
                **found.to_dict(),
                "queue_ms": (taken_ns - started_ns) / 1e6,
            }
        )

    def policies(self) -> list[str]:
        """Return the names that a request may give, one of each numbered kind."""
        own = [*self.manifest.operating_points, *kept_points(self.bundle)]
        names = [*own, DEEPEST, "exit-1", f"patience-{min(2, len(self.manifest.exits))}"]
        return names if self.default in names else [self.default, *names]

    def drift(self) -> Drift | None:
        """Return the drift of all workers' latest images together; see `Stats.drift`.

        A server runs for months: asked now and then, as Prometheus does, this looks at the last
        `DRIFT_WINDOW` images or up to twice as many, and not at what came before.

        Raises:
            BundleError: `calibration.npz` is damaged.
        """
        tally = Tally.joined([predictor.tally for predictor in self.predictors])
        older, newer = self._marks
        if sum(tally.fine) - sum(newer) >= DRIFT_WINDOW:
            older, newer = newer, tally.fine
            self._marks = older, newer
        tally.fine = [now - then for now, then in zip(tally.fine, older, strict=True)]
        return tally.stats(self.predictors[0].chosen).drift

    def slow_down(self) -> float:
        """Return the largest of the workers' slow-down factors."""
        return max(predictor.timing.slow_down.factor for predictor in self.predictors)

    def _only_input(self, inputs: Sequence[Tensor]) -> Tensor:
        tensor = inputs[0]
        expected = self.inputs.get(tensor.name)
        if len(inputs) != 1 or expected is None:
            valid = ", ".join(f"{name} ({datatype})" for name, datatype in self.inputs.items())
            given = ", ".join(repr(one.name[:40]) for one in inputs[:5])
            raise Refusal(400, f"{self.name} takes one input of {valid}, not {given}")
        if tensor.datatype != expected:
            raise Refusal(400, f"input {tensor.name} is {expected}, not {tensor.datatype}")
        if tensor.shape[0] > MAX_IMAGES:
            raise Refusal(
                400, f"{tensor.shape[0]} images are more than the {MAX_IMAGES} of one request"
            )
        shape = self.input.shape
        fits, meant = {
            "FP32": (tensor.shape[1:] == shape, f"[n, {', '.join(map(str, shape))}]"),
            "UINT8": (len(tensor.shape) == 4 and tensor.shape[3] in (1, 3), "[n, H, W, 3]"),
            BYTES: (all(side == 1 for side in tensor.shape[1:]), "[n]"),
        }[expected]
        if not fits:
            raise Refusal(
                400, f"input {tensor.name} has the shape {list(tensor.shape)}, not {meant}"
            )
        return tensor

    def _policy(self, choice: str | float | None) -> Chosen | None:
        """Return the policy that a stranger names: never a file of this server."""
        if choice is None:
            return None
        found = self._policies.get(choice)
        if found is None:
            if isinstance(choice, str) and (choice.endswith(".json") or len(choice) > LARGEST_NAME):
                names = ", ".join(self.policies())
                raise Refusal(400, f"unknown policy {choice[:LARGEST_NAME]!r}: choose from {names}")
            found = choose_policy(self.bundle, choice)
            tuned = isinstance(choice, str) and kept_point(self.bundle, choice) is not None
            if len(self._policies) < MOST_POLICIES and not tuned:  # which may be tuned again
                self._policies[choice] = found
        return found

    def _predict(
        self,
        worker: int,
        tensor: Tensor,
        max_ms: float | None,
        choice: str | float | None,
        started_ns: int,
    ) -> list[Prediction]:
        predictor, policy = self.predictors[worker], self._policy(choice)
        max_ms = self.max_ms if max_ms is None else max_ms
        data = tensor.data
        try:
            if tensor.datatype != "FP32" and len(data) == 1:
                found = [
                    predictor.predict(data[0], max_ms=max_ms, started_ns=started_ns, policy=policy)
                ]
            else:
                found = _in_turn(predictor, self._prepared(data), max_ms, started_ns, policy)
        except ImageError:
            self.metrics.add_failure(self.name)
            raise
        for prediction in found:
            self.metrics.add(self.name, prediction)
        return found

    def _prepared(self, data: NDArray[Any] | list[bytes]) -> NDArray[np.float32]:
        """Return float32 [n, C, H, W]; images are decoded one by one, since each may be large."""
        if isinstance(data, np.ndarray) and data.dtype == np.float32:
            return data
        pre = self.manifest.preprocessing
        return normalize(np.stack([crop(image, pre) for image in _pictures(data, pre)]), pre)


def _pictures(data: NDArray[np.uint8] | list[bytes], pre: Preprocessing) -> Iterator[Any]:
    for number, one in enumerate(data, start=1):
        if isinstance(one, bytes):
            yield decode(one, f"image {number} of {len(data)}", pre)
        else:
            yield from_array(one)


def _in_turn(
    predictor: Predictor,
    inputs: NDArray[np.float32],
    max_ms: float | None,
    started_ns: int,
    policy: Chosen | None,
) -> list[Prediction]:
    """Predict preprocessed images: together, or under a deadline one after another.

    The deadline is the whole request's: each image gets an even share of the time that is left, and
    all are late when the last one is.
    """
    if max_ms is None or len(inputs) == 1:
        return predictor.predict_inputs(inputs, max_ms=max_ms, started_ns=started_ns, policy=policy)
    found = []
    for number in range(len(inputs)):
        passed_ms = (time.perf_counter_ns() - started_ns) / 1e6
        until_ms = passed_ms + max(max_ms - passed_ms, 0.0) / (len(inputs) - number)
        found += predictor.predict_inputs(
            inputs[number : number + 1], max_ms=until_ms, started_ns=started_ns, policy=policy
        )
    late = found[-1].elapsed_ms > max_ms
    return [msgspec.structs.replace(one, deadline_missed=late) for one in found]
