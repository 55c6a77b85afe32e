"""Threads that predict, behind one bounded queue.

The event loop admits, the workers compute: decoding a request, an image, and running the segments
all happen here. Only the event loop's thread calls `submit`, so what it counts needs no lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from mate_edge.runtime.serve.reply import Refusal

T = TypeVar("T")
Work = Callable[[int], T]
RETRY_AFTER_S = "1"


def _do(
    work: Work[T], done: asyncio.Future[T], loop: asyncio.AbstractEventLoop, worker: int
) -> None:
    """Do what somebody waits for, in a worker's thread."""
    if done.cancelled():
        return
    result, failed = None, None
    try:
        result = work(worker)
    except BaseException as error:
        failed = error
    with suppress(RuntimeError):  # the loop has ended, and nobody waits any longer
        loop.call_soon_threadsafe(_settle, done, result, failed)
    del done, failed  # an error holds this frame, which must not hold the error and its request


def _settle(done: asyncio.Future[T], result: T | None, failed: BaseException | None) -> None:
    if done.cancelled():
        return
    if failed is not None:
        done.set_exception(failed)
    else:
        done.set_result(result)  # type: ignore[arg-type]


class Workers:
    """`count` threads and a queue of at most `max_queue` waiting jobs.

    Args:
        count: of threads; a job is told which one it is in, from 0.
        max_queue: jobs that may wait beside those that run.
    """

    def __init__(self, count: int, max_queue: int) -> None:
        self.count, self.max_queue = count, max_queue
        self.accepted = 0
        """Jobs that wait or run."""
        self.dropped = 0
        """Jobs whose answer nobody waited for."""
        self._queue: SimpleQueue[Callable[[int], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"worker {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._queue.qsize()

    def check_room(self) -> None:
        """Refuse when the queue is full.

        Raises:
            Refusal: 503 with Retry-After.
        """
        if self.accepted >= self.count + self.max_queue:
            raise Refusal(
                503,
                f"the server is busy: {self.max_queue} requests wait already; try again",
                {"retry-after": RETRY_AFTER_S},
            )

    async def submit(self, work: Work[T]) -> T:
        """Do `work` in a worker; return what it returns, or raise what it raises.

        Raises:
            Refusal: the queue is full.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self.accepted += 1
        try:
            self._queue.put(partial(_do, work, done, loop))
            return await done
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.accepted -= 1
            del done  # as in `_do`

    def stop(self) -> None:
        """Do what was accepted, then end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while (job := self._queue.get()) is not None:
            job(number)
            del job  # and what was sent with it, however long the next one takes to come
