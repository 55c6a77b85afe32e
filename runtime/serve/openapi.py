"""The OpenAPI document, and a page of it that needs nothing from the internet."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any

import msgspec

from mate_edge import __version__
from mate_edge.runtime.serve.protocol import BINARY, InferRequest

JSON = "application/json"
ERRORS = {
    400: "malformed, or a parameter, shape or datatype that is none; the text says what is valid",
    401: "the token is missing or wrong",
    403: "a page of another site asked",
    404: "no such model or version",
    405: "a path that takes another verb",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "a content type that is no image, or a compressed body",
    500: "the server failed; its log says why",
    503: "the server is busy, or ends; Retry-After says when to try again",
}
MODEL = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
CHOICES = [
    {
        "name": "max_ms",
        "in": "query",
        "description": "the deadline, ms, from the request's arrival; exit 1 answers in any case",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "policy",
        "in": "query",
        "description": "an operating point, deepest, exit-1, patience-2, or a threshold",
        "schema": {"type": "string"},
    },
]
TEXT = {"type": "string"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}
LISTED = {"type": "array", "items": NUMBER}
PREDICTION = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("model", "version", "label"), TEXT),
        "index": INTEGER,
        "confidence": NUMBER,
        "probabilities": LISTED,
        "exit": {**INTEGER, "description": "the exit that answered, from 1"},
        "halted_by": {"enum": ["policy", "deadline", "last-exit"]},
        **dict.fromkeys(("elapsed_ms", "queue_ms", "decode_ms", "preprocess_ms"), NUMBER),
        "segment_ms": LISTED,
        "deadline_missed": BOOLEAN,
    },
}
INFERENCE = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("model_name", "model_version", "id"), TEXT),
        "parameters": {
            "type": "object",
            "description": "of a single image: exit, halted_by, ms, deadline_missed",
        },
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
}


def _operation(summary: str, answer: Any = None, **more: Any) -> dict[str, Any]:
    """Describe one; `answer` is the schema of what 200 brings."""
    errors = {
        str(status): {"description": text, "content": {JSON: {"schema": _ref("Error")}}}
        for status, text in ERRORS.items()
    }
    content = {JSON: {"schema": answer or {"type": "object"}}}
    done = {"200": {"description": "done", "content": content}}
    return {"summary": summary, "responses": done | errors, **more}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(**kinds: Any) -> dict[str, Any]:
    return {"required": True, "content": {name: {"schema": kind} for name, kind in kinds.items()}}


@cache
def document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1; the schemas of requests are those that read them."""
    requests, schemas = msgspec.json.schema_components(
        [InferRequest], ref_template="#/components/schemas/{name}"
    )
    raw = {"type": "string", "format": "binary"}
    infer = {
        "requestBody": _body(**{JSON: requests[0], BINARY: raw}),
        "description": (
            "The binary tensor extension: with Inference-Header-Content-Length the JSON document "
            "has that length and raw tensors follow. Parameters: max_ms, policy, "
            "binary_data_output. See the model's metadata for its inputs, of which one is given."
        ),
    }
    form = {"type": "object", "properties": {"file": raw, "max_ms": NUMBER, "policy": TEXT}}
    image = _body(**{"image/*": raw, BINARY: raw, "multipart/form-data": form})
    name = {
        "name": "model",
        "in": "query",
        "description": "which model, where there are several",
        "schema": TEXT,
    }
    one, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    paths: dict[str, Any] = {
        "/v1/classify": {
            "post": _operation(
                "Classify an image file",
                _ref("Prediction"),
                parameters=[name, *CHOICES],
                requestBody=image,
            )
        },
        "/v1/models": {"get": _operation("The models that serve: classes, exits, policies, times")},
        "/v2": {"get": _operation("Name, version and extensions of the server")},
        "/v2/health/live": {"get": _operation("Whether the process answers; needs no token")},
        "/v2/health/ready": {"get": _operation("Whether a model serves; needs no token")},
    }
    about = {
        "": "Metadata of a model: its inputs and outputs",
        "/ready": "Whether a model serves",
        "/config": "Triton's configuration of a model",
        "/stats": "Triton's statistics of a model",
    }
    for path, parameters in ((one, [MODEL]), (version, [MODEL, VERSION])):
        for ending, text in about.items():
            paths[path + ending] = {"get": _operation(text, parameters=parameters)}
        paths[f"{path}/infer"] = {
            "post": _operation(
                "Classify tensors: preprocessed images, frames or encoded images",
                _ref("Inference"),
                parameters=parameters,
                **infer,
            )
        }
    paths["/v2/models/stats"] = {"get": _operation("Triton's statistics of all models")}
    paths["/v2/repository/index"] = {"post": _operation("Every version in the repository")}
    paths["/v2/repository/models/{name}/load"] = {
        "post": _operation(
            "Load a version, the newest when none is named, in place of the one that serves",
            parameters=[MODEL, {**VERSION, "in": "query", "required": False}],
        )
    }
    paths["/v2/repository/models/{name}/unload"] = {
        "post": _operation("Unload a model", parameters=[MODEL])
    }
    metrics = _operation("Metrics, as Prometheus reads them")
    metrics["responses"]["200"] = {"description": "done", "content": {"text/plain": {}}}
    paths["/metrics"] = {"get": metrics}
    error = {"type": "object", "properties": {"error": TEXT}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mate-edge serve",
            "version": __version__,
            "description": "Multi-exit image classifiers under a deadline: the Open Inference "
            "Protocol v2 with binary tensors, and one call for an image file.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schemas,
                "Prediction": PREDICTION,
                "Inference": INFERENCE,
                "Error": error,
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere }
article { border-top: 1px solid #8886; padding: .5rem 0 }
h2 { font-size: 1rem; margin: .5rem 0 } code, pre { font-size: .875rem }
pre { white-space: pre-wrap } li { margin: .2rem 0 .2rem 1.2rem }
"""


@cache
def to_html() -> bytes:
    """Return it for people: one section a path, then the schemas."""
    found = document()
    lines = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>mate-edge serve</title><link rel=icon href='data:,'><style>{STYLE}</style>",
        f"<h1>mate-edge serve {escape(__version__)}</h1>",
        f"<p>{escape(found['info']['description'])} The same for programs: "
        "<a href=openapi.json>openapi.json</a>. <a href='./'>Try it</a>.</p>",
    ]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            lines.append(
                f"<article><h2><code>{method.upper()} {escape(path)}</code></h2>"
                f"<p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
            )
            for parameter in operation.get("parameters", ()):
                text = parameter.get("description", f"of the {parameter['in']}")
                lines.append(f"<li><code>{escape(parameter['name'])}</code>: {escape(text)}</li>")
            kinds = operation.get("requestBody", {}).get("content", {})
            if kinds:
                lines.append(f"<p>Body: {escape(', '.join(kinds))}</p>")
            lines.append("</article>")
    lines.append('<h1>Errors</h1><p>A JSON document <code>{"error": "..."}</code>.</p>')
    lines += [f"<li>{status}: {escape(text)}</li>" for status, text in ERRORS.items()]
    lines.append("<h1>Schemas</h1>")
    for name, schema in found["components"]["schemas"].items():
        shown = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
        lines.append(
            f"<details><summary>{escape(name)}</summary><pre>{escape(shown)}</pre></details>"
        )
    return "\n".join(lines).encode()
