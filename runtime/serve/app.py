"""The ASGI application: who may ask, where a request goes, and how errors are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from mate_edge import __version__
from mate_edge.runtime.metrics import CONTENT_TYPE, Metrics
from mate_edge.runtime.serve import openapi
from mate_edge.runtime.serve.describe import configuration, metadata, statistics, summary
from mate_edge.runtime.serve.form import take_image
from mate_edge.runtime.serve.guard import OPEN, Guard
from mate_edge.runtime.serve.intake import GoneError, Intake, drain, has_body, header
from mate_edge.runtime.serve.model import Model
from mate_edge.runtime.serve.protocol import HEADER_LENGTH
from mate_edge.runtime.serve.reply import Refusal, Reply, refuse, to_json
from mate_edge.runtime.serve.repository import Repository
from mate_edge.runtime.serve.transport import MAX_CONNECTIONS
from mate_edge.runtime.serve.workers import RETRY_AFTER_S, Workers

STARTED, ANSWERED = "mate_edge.started_ns", "mate_edge.answered"
EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "statistics",
              "model_configuration"]  # fmt: skip
HTML = "text/html; charset=utf-8"
PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
TOO_SLOW = 408
MAX_CONTROL_BYTES = 64 * 1024

Handler = Callable[[Request], Awaitable[Reply]]


class App:
    """The server's application.

    Args:
        repository: of the models.
        workers: that predict.
        metrics: of the models; the queue's are added.
        intake: reads bodies.
        guard: says who may ask.
    """

    def __init__(
        self,
        repository: Repository,
        workers: Workers,
        metrics: Metrics,
        intake: Intake,
        guard: Guard,
    ) -> None:
        self.repository, self.workers = repository, workers
        self.metrics, self.intake = metrics, intake
        self._guard = guard
        self._active = 0
        self._requests = Counter(
            "mate_edge_requests",
            "Requests answered, by HTTP status.",
            ["status"],
            registry=metrics.registry,
        )
        one = "/v2/models/{name}"
        version = one + "/versions/{version}"
        self._router = Router(
            [
                *self._routes("POST", self.infer, one + "/infer", version + "/infer"),
                *self._routes("POST", self.classify, "/v1/classify"),
                *self._routes("GET", self.live, "/v2/health/live"),
                *self._routes("GET", self.ready, "/v2/health/ready"),
                *self._routes("GET", self.server, "/v2"),
                *self._routes("GET", self.all_statistics, "/v2/models/stats"),
                *self._routes("GET", self.model_ready, one + "/ready", version + "/ready"),
                *self._routes("GET", self._about(metadata), one, version),
                *self._routes(
                    "GET", self._about(configuration), one + "/config", version + "/config"
                ),
                *self._routes(
                    "GET", self.model_statistics, one + "/stats", version + "/stats"
                ),
                *self._routes("POST", self.index, "/v2/repository/index"),
                *self._routes("POST", self.load, "/v2/repository/models/{name}/load"),
                *self._routes("POST", self.unload, "/v2/repository/models/{name}/unload"),
                *self._routes("GET", self.models, "/v1/models"),
                *self._routes("GET", self.read_metrics, "/metrics"),
                *self._routes("GET", self.page, "/"),
                *self._routes("GET", self.documentation, "/docs"),
                *self._routes("GET", self.openapi, "/openapi.json"),
            ],
            redirect_slashes=False,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        scope[STARTED] = time.perf_counter_ns()
        scope["app"] = self  # the router raises what it would else answer as plain text
        self._active += 1
        try:
            await self._route(scope, receive, send)
        except GoneError:
            pass
        except HTTPException as error:
            await self._send(_told(error), scope, receive, send)
        except asyncio.CancelledError:  # the server ends and waits no longer
            if ANSWERED not in scope:
                ended = Refusal(503, "the server ends", {"retry-after": RETRY_AFTER_S})
                await self._send(refuse(ended), scope, receive, send)
        except Exception as error:
            await self._send(refuse(error), scope, receive, send)
        finally:
            self._active -= 1

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._active > MAX_CONNECTIONS and scope["path"] not in OPEN:
            raise Refusal(503, "the server is busy", {"retry-after": RETRY_AFTER_S})
        self._guard.check(scope)
        await self._router(scope, receive, send)

    def _routes(self, method: str, handler: Handler, *paths: str) -> list[Route]:
        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            await self._send(await handler(Request(scope, receive)), scope, receive, send)

        wrapped: Any = _Endpoint(endpoint)
        return [Route(path, wrapped, methods=[method]) for path in paths]

    def _about(self, describe: Callable[[Model], Any]) -> Handler:
        """Return what answers with something that a loaded model says of itself."""

        async def handler(request: Request) -> Reply:
            path = request.path_params
            with self.repository.model(path["name"], path.get("version")) as model:
                return to_json(describe(model))

        return handler

    async def _send(self, reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ANSWERED] = True
        self._requests.labels(reply.status).inc()
        await _send(reply, scope, receive, send)

    async def infer(self, request: Request) -> Reply:
        """Answer an `infer` request of the protocol."""
        scope, path = request.scope, request.path_params
        with self.repository.model(path["name"], path.get("version")) as model:
            self.workers.check_room()
            body = await self.intake.read(scope, request.receive)
            try:
                length = header(scope, HEADER_LENGTH.encode())
                started = scope[STARTED]
                return await self.workers.submit(
                    lambda worker: model.infer(worker, body, length, started)
                )
            finally:
                self.intake.release(body)

    async def classify(self, request: Request) -> Reply:
        """Answer with the prediction of one image file."""
        scope, query = request.scope, dict(request.query_params)
        name = self.repository.only(query.pop("model", None))
        with self.repository.model(name, query.pop("version", None)) as model:
            self.workers.check_room()
            body = await self.intake.read(scope, request.receive)

            def work(worker: int) -> Reply:
                image, fields = take_image(body, header(scope, b"content-type"))
                return model.classify(worker, image, {**fields, **query}, scope[STARTED])

            try:
                return await self.workers.submit(work)
            finally:
                self.intake.release(body)

    async def live(self, request: Request) -> Reply:
        """Answer that the process does."""
        return to_json({"live": True})

    async def ready(self, request: Request) -> Reply:
        """Say whether a model serves."""
        ready = self.repository.ready
        return to_json({"ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Reply:
        """Return the protocol's server metadata."""
        return to_json({"name": "mate-edge", "version": __version__, "extensions": EXTENSIONS})

    async def model_ready(self, request: Request) -> Reply:
        """Say whether a model, or this version of it, serves."""
        path = request.path_params
        with self.repository.model(path["name"], path.get("version")) as model:
            return to_json({"name": model.name, "ready": True})

    async def model_statistics(self, request: Request) -> Reply:
        """Return Triton's statistics of one model."""
        path = request.path_params
        with self.repository.model(path["name"], path.get("version")) as model:
            return to_json({"model_stats": [statistics(model)]})

    async def all_statistics(self, request: Request) -> Reply:
        """Return Triton's statistics of all models."""
        return to_json({"model_stats": [statistics(model) for model in self.repository.loaded()]})

    async def index(self, request: Request) -> Reply:
        """Return every version in the repository."""
        asked = await self._control(request, ("ready",))
        found = await _in_thread(self.repository.index)
        if asked.get("ready"):
            found = [one for one in found if one["state"] == "READY"]
        return to_json(found)

    async def load(self, request: Request) -> Reply:
        """Load a model's newest version, or the one that the parameter `version` names."""
        asked = await self._control(request, ("version",))
        version = request.query_params.get("version", asked.get("version"))
        name = request.path_params["name"]
        await self.repository.load(name, None if version is None else str(version))
        with self.repository.model(name) as model:
            return to_json({"name": name, "version": model.version, "state": "READY"})

    async def unload(self, request: Request) -> Reply:
        """Unload a model."""
        await self._control(request, ("unload_dependents",))
        self.repository.unload(request.path_params["name"])
        return to_json({})

    async def _control(self, request: Request, valid: tuple[str, ...]) -> dict[str, Any]:
        """Return the parameters of a request to the model repository extension."""
        body = await self.intake.read(request.scope, request.receive)
        self.intake.release(body)
        if not body:
            return {}
        try:
            if len(body) > MAX_CONTROL_BYTES:
                raise msgspec.ValidationError("it is too large")
            document = msgspec.json.decode(body, type=dict[str, Any])
            inner = msgspec.convert(document.pop("parameters", {}), dict[str, Any])
            asked = {**document, **inner}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
            raise Refusal(400, f"the request is not what the protocol says: {reason}") from None
        for name in asked:
            if name not in valid:
                raise Refusal(
                    400, f"unknown parameter {name[:60]!r}: choose from {', '.join(valid)}"
                )
        return asked

    async def models(self, request: Request) -> Reply:
        """Return what the page shows of the models that serve."""
        models = self.repository.loaded()
        return to_json(await _in_thread(lambda: [summary(model) for model in models]))

    async def read_metrics(self, request: Request) -> Reply:
        """Return the metrics as Prometheus reads them."""
        return Reply(await _in_thread(self.metrics.text), content_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Reply:
        """Return the page to try it."""
        return _html(await _in_thread(PAGE.read_bytes))

    async def documentation(self, request: Request) -> Reply:
        """Return the OpenAPI document for people."""
        return _html(openapi.to_html())

    async def openapi(self, request: Request) -> Reply:
        """Return the OpenAPI document."""
        return to_json(openapi.document())


class _Endpoint:
    """An ASGI application, which Starlette does not wrap as it does functions."""

    def __init__(self, call: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._call(scope, receive, send)


def _html(body: bytes) -> Reply:
    headers = {"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"}
    return Reply(body, content_type=HTML, headers=headers)


def _told(error: HTTPException) -> Reply:
    """Return what the router found: no such path, or not with this method."""
    texts = {404: "there is no such path: see /docs", 405: "not with this method: see /docs"}
    reply = refuse(Refusal(error.status_code, texts.get(error.status_code, "refused")))
    return Reply(reply.body, reply.status, headers=dict(error.headers or {}))


async def _send(reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a reply; one that comes before the body was read ends the connection."""
    early = has_body(scope)
    goes_on = early and reply.status != TOO_SLOW
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *((key.encode(), value.encode("latin-1")) for key, value in reply.headers.items()),
    ]
    if early:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": goes_on})
    if goes_on:
        await drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)
