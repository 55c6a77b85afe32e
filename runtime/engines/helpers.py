"""Threads that run the parts of a batch, for engines on a CPU."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue

Job = Callable[[], None]
Done = SimpleQueue[BaseException | None]
Jobs = SimpleQueue[tuple[Job, Done] | None]


class Helpers:
    """A number of threads that do what they are given, and end with this object.

    Ctrl-C may end whoever waits for them, at any place, and the next batch must run all the same.
    The executors of `concurrent.futures` have locks in Python, which may stay locked then; a
    `SimpleQueue` has none.
    """

    def __init__(self, count: int) -> None:
        jobs: Jobs = SimpleQueue()
        self._jobs = jobs
        self.stop = weakref.finalize(self, _end, jobs, count)
        """Let the threads end when they have done what they were given."""
        for _ in range(count):
            threading.Thread(target=_work, args=(jobs,), name="batch", daemon=True).start()

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs and wait for them; the first error is raised at once, and others may go on.

        Raises:
            BaseException: what a job raised.
        """
        done: Done = SimpleQueue()
        for job in jobs:
            self._jobs.put((job, done))
        for _ in jobs:
            if (failed := done.get()) is not None:
                raise failed


def _work(jobs: Jobs) -> None:
    while (given := jobs.get()) is not None:
        job, done = given
        failed: BaseException | None = None
        try:
            job()
        except BaseException as error:
            failed = error
        done.put(failed)
        del given, job, done, failed  # and a batch with them, however long the next one takes


def _end(jobs: Jobs, count: int) -> None:
    for _ in range(count):
        jobs.put(None)
