"""The threads that predict: what they hold, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref

import pytest

from mate_edge.runtime.serve.workers import Workers


class Body(bytearray):
    """What a request sent; a weak reference can be made to it."""


@pytest.fixture
def workers() -> Workers:
    return Workers(2, 4)


def test_what_a_failed_request_sent_is_freed_at_once(workers: Workers) -> None:
    def fail(body: Body) -> None:
        raise ValueError(len(body))

    async def ask() -> weakref.ref[Body]:
        body = Body(1000)
        sent = weakref.ref(body)
        with contextlib.suppress(ValueError):
            await workers.submit(lambda worker: fail(body))
        return sent

    async def ask_ten() -> list[weakref.ref[Body]]:
        return [await ask() for _ in range(10)]

    gc.disable()  # a cycle would be freed some day, and hold a gigabyte until then
    try:
        sent = asyncio.run(ask_ten())
        workers.stop()
        assert [one() for one in sent] == [None] * 10
    finally:
        gc.enable()


def test_a_job_nobody_waits_for_is_left_out(workers: Workers) -> None:
    done: list[int] = []
    may_end = threading.Event()

    async def give_up() -> None:
        held = [
            asyncio.ensure_future(workers.submit(lambda worker: may_end.wait(60)))
            for _ in range(workers.count)
        ]
        waiting = asyncio.ensure_future(workers.submit(done.append))
        await asyncio.sleep(0)  # all are in the queue, the last one behind what holds the workers
        assert workers.accepted == 3
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert workers.accepted == 2
        may_end.set()
        await asyncio.gather(*held)

    asyncio.run(give_up())
    workers.stop()
    assert done == []
    assert workers.dropped == 1


def test_a_job_that_outlives_the_server_ends_quietly_and_is_counted(
    workers: Workers, recwarn: pytest.WarningsRecorder
) -> None:
    started, may_end = threading.Event(), threading.Event()

    def work(worker: int) -> None:
        started.set()
        may_end.wait(60)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(workers.submit(work))
        await asyncio.to_thread(started.wait, 60)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())  # and its loop is closed
    may_end.set()
    workers.stop()
    assert workers.dropped == 1
    assert not recwarn.list, "a thread that dies of an exception is a warning"
