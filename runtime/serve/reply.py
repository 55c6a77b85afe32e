"""What goes back to a client: a reply, or a refusal that says what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from mate_edge.errors import ImageError, MateEdgeError, UsageError

JSON = "application/json"
INTERNAL = "the server failed at this request: its log says why"

log = logging.getLogger("mate_edge.serve")


@dataclass(frozen=True)
class Reply:
    """A response: its body, its HTTP status and its headers."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(MateEdgeError):  # noqa: N818 - no error of ours: what a client is told
    """A request that is not served.

    Args:
        status: of HTTP.
        message: what was wrong, with which value, and what to do; for strangers: without paths.
        headers: such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def to_json(value: object, status: int = 200) -> Reply:
    """Answer with a JSON document."""
    return Reply(msgspec.json.encode(value), status)


def refuse(error: Exception) -> Reply:
    """Turn what went wrong into a reply.

    Only errors whose text is about the request are told; what may name a file of the server, and
    every bug, goes to the log.
    """
    if isinstance(error, Refusal):
        status, message, headers = error.status, str(error), error.headers
    elif isinstance(error, UsageError | ImageError):
        status, message, headers = 400, str(error), {}
    else:
        log.error("%s", error, exc_info=None if isinstance(error, MateEdgeError) else error)
        status, message, headers = 500, INTERNAL, {}
    body = msgspec.json.encode({"error": message})
    return Reply(body, status, headers=headers)
