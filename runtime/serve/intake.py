"""Reading a request's body: so much, so long, and in all so many bytes at once."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.types import Receive, Scope

from mate_edge.runtime.serve.reply import Refusal
from mate_edge.runtime.serve.workers import RETRY_AFTER_S

BODY_READ = "mate_edge.body_read"
"""In the scope of a request whose body has come to its end."""
HELD_BODIES = 8
"""So many bodies of the largest size may be in memory, or more of smaller ones."""
DRAIN_S = 2.0


class GoneError(Exception):
    """The client hung up: there is nobody to answer."""


class Intake:
    """Reads bodies.

    Args:
        max_bytes: of one body.
        read_s: seconds that a body may take to come in.
    """

    def __init__(self, max_bytes: int, read_s: float) -> None:
        self.max_bytes, self.read_s = max_bytes, read_s
        self.held = 0
        """Bytes of all bodies in memory."""

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body; `release` it when it has been answered.

        Raises:
            Refusal: 400, a length that is none; 408, it came too slowly; 413, it is too large;
                415, it is compressed; 503, too much is in memory already.
            GoneError: the client hung up.
        """
        packed = header(scope, b"content-encoding")
        if packed not in (None, "identity"):
            raise Refusal(415, "send the body as it is, without Content-Encoding")
        declared = header(scope, b"content-length")
        if declared is not None:
            if not declared.isdigit():
                raise Refusal(400, "Content-Length is no number of bytes")
            self._check(int(declared[:20]))
        chunks: list[bytes] = []
        size = 0
        try:
            with anyio.move_on_after(self.read_s) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    chunk = message.get("body", b"")
                    if chunk:
                        self._check(size + len(chunk), len(chunk))
                        chunks.append(chunk)
                        size += len(chunk)
                        self.held += len(chunk)
                    if not message.get("more_body", False):
                        scope[BODY_READ] = True
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            assert limit.cancelled_caught
            raise Refusal(408, f"the body did not arrive within {self.read_s:g} s")
        except BaseException:
            self.held -= size
            raise

    def release(self, body: bytes) -> None:
        """Count a body as gone."""
        self.held -= len(body)

    def _check(self, size: int, more: int | None = None) -> None:
        if size > self.max_bytes:
            raise Refusal(
                413,
                f"the body is larger than the {self.max_bytes} bytes that this server takes: send "
                "fewer or smaller images (--max-mb)",
            )
        if self.held + (size if more is None else more) > HELD_BODIES * self.max_bytes:
            raise Refusal(
                503, "the server is busy: too many bodies at once", {"retry-after": RETRY_AFTER_S}
            )


async def drain(receive: Receive) -> None:
    """Take in for a moment what a refused client still sends: a reset would eat its answer."""
    with anyio.move_on_after(DRAIN_S):
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def has_body(scope: Scope) -> bool:
    """Say whether a request comes with a body that has not been read."""
    if BODY_READ in scope:
        return False
    length = header(scope, b"content-length")
    return length not in (None, "0") or header(scope, b"transfer-encoding") is not None
