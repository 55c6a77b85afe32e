"""The HTTP connection: uvicorn's, with a limit on how long and how large a request's head may be.

uvicorn waits for ever for headers that do not come, and keeps however many come.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 512


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too long, or are too large."""

    head_s: ClassVar[float] = 10.0
    """Seconds from the first byte, or from connecting, to the end of the headers."""

    _timer: TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for a request, unless there are too many connections already."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, and count it while it is a head."""
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._done()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.head_s, self._expire)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as JSON."""
        body = f'{{"error": "{msg}"}}'.encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
