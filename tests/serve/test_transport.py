"""Connections: how many there may be, and which one goes when there are too many."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import uvicorn
from uvicorn.server import ServerState

from mate_edge.runtime.serve import transport

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Busy:
    """An application that answers `/slow` when it may."""

    def __init__(self) -> None:
        self.slow = 0
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.slow += 1
            await self.may_end.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def has_begun(self, slow: int) -> None:
        while self.slow < slow:
            await asyncio.sleep(0.001)


def ask(link: Link, path: str) -> None:
    link[1].write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())


async def answer(link: Link) -> bytes:
    found = await link[0].readuntil(b"\r\n\r\nok")
    return found.splitlines()[0]


async def is_closed(link: Link) -> bool:
    try:
        return await link[0].read() == b""
    except ConnectionResetError:
        return True


def test_one_connection_too_many_costs_the_one_that_is_idle_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(transport, "MOST_CONNECTIONS", 3)
    asyncio.run(asyncio.wait_for(connect_too_often(), 60))


async def connect_too_often() -> None:
    app = Busy()
    config, state = uvicorn.Config(app, log_config=None, ws="none"), ServerState()
    listening = await asyncio.get_running_loop().create_server(
        lambda: transport.PatientProtocol(config, state, {}), "127.0.0.1", 0
    )
    links: list[Link] = []

    async def connect() -> Link:
        links.append(await asyncio.open_connection(*listening.sockets[0].getsockname()))
        return links[-1]

    async with listening:
        first, second = await connect(), await connect()
        for link in (second, first, second):
            ask(link, "/")
            assert await answer(link) == b"HTTP/1.1 200 OK"

        third = await connect()
        assert await is_closed(first)
        ask(third, "/slow")
        ask(second, "/slow")
        await app.has_begun(2)

        fourth = await connect()  # nobody is idle
        ask(fourth, "/")
        assert await answer(fourth) == b"HTTP/1.1 200 OK"
        fifth = await connect()
        assert await is_closed(fourth)
        ask(fifth, "/slow")
        await app.has_begun(3)
        assert await is_closed(await connect())

        app.may_end.set()
        for link in (second, third, fifth):
            assert await answer(link) == b"HTTP/1.1 200 OK"
        for _, writer in links:
            writer.close()


def test_who_takes_nothing_of_a_last_answer_is_cut_off_however_little_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport.PatientProtocol, "limit_s", 0.1)
    asyncio.run(asyncio.wait_for(take_nothing(), 60))


async def take_nothing() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = bytes(50_000)  # less than asyncio keeps before it says that there is too much
        headers = [(b"content-length", b"50000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config, state = uvicorn.Config(app, log_config=None, ws="none"), ServerState()
    loop = asyncio.get_running_loop()
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listening = await loop.create_server(
            lambda: transport.PatientProtocol(config, state, {}), sock=listener
        )
        async with listening:
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            await loop.sock_sendall(client, request)
            while not state.connections:
                await asyncio.sleep(0.001)
            (one,) = state.connections
            while state.connections:
                await asyncio.sleep(0.01)
            assert one.cycle.response_complete
