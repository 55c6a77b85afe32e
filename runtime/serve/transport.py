"""The HTTP connection: uvicorn's, with limits on how slow, large and many what comes may be.

uvicorn waits for ever for headers that do not come and for a client that reads nothing, and keeps
however many headers and connections come.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a head, of the trailers after a body, and of whatever else is no body."""
MAX_CONNECTIONS = 512
"""For each one more, that one is closed that waits longest for a next request."""
MOST_CONNECTIONS = 640
"""Where none does, so many may be there, to be told that the server is busy."""


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose head takes too long or is too large, or that takes no answer."""

    limit_s: ClassVar[float] = 10.0
    """Seconds from the first byte, or from connecting, to the end of the headers; and those in
    which a client must take at least a byte of its answer."""

    _since = 0.0
    """When it began to wait for a request, in the loop's time."""
    _timer: TimerHandle | None = None
    _head_bytes = 0
    _body_came = False
    _writing: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for a request; where there are too many connections, one is closed."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._since = self.loop.time()
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._done()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, and count what is no body."""
        self._body_came = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._head_bytes = 0 if self._body_came else self._head_bytes + len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()  # uvicorn waits no longer, whatever came: an empty line is no request

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._done()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass it on."""
        self._body_came = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count anew."""
        self._body_came = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to take the last answer."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to take what waits for it."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It did."""
        self._taken()
        if self.transport.is_closing():
            self._watch()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that nothing came on, whether or not its last answer was taken."""
        self._close()

    def shutdown(self) -> None:
        """End, after the answer that is being made."""
        super().shutdown()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as JSON."""
        body = f'{{"error": "{msg}"}}'.encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._close()

    @property
    def _is_idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.transport.is_closing()

    def _make_room(self) -> None:
        """Close the connection that waits longest for a next request, or in need for its first."""
        others = (one for one in self.connections if isinstance(one, PatientProtocol))
        idle = [one for one in others if one._is_idle and one is not self]
        longest = min(idle, key=lambda one: (one.cycle is None, one._since), default=self)
        if longest.cycle is not None or len(self.connections) > MOST_CONNECTIONS:
            longest._close()

    def _refuse(self) -> None:
        if self._timer is None:  # a request is being answered
            self.transport.abort()
        else:
            self.send_400_response("The request's headers are too large.")

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.limit_s, self._expire)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self._close()

    def _close(self) -> None:
        """Close once the client has taken what waits for it, or takes no more."""
        self._done()
        if not self.transport.is_closing():
            self.transport.close()
        self._watch()

    def _watch(self) -> None:
        """Give the client `limit_s` to take a byte of what waits for it."""
        if self._writing is None:
            waiting = self.transport.get_write_buffer_size()
            self._writing = self.loop.call_later(self.limit_s, self._look, waiting)

    def _look(self, waited: int) -> None:
        self._writing = None
        waiting = self.transport.get_write_buffer_size()
        if waiting >= waited > 0:
            self.transport.abort()
        elif waiting:
            self._watch()

    def _taken(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
