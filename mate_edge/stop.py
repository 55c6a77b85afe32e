"""Stop between two steps when a signal asks for it, as preemptible machines do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Notes SIGTERM and SIGINT while it is entered; the second one acts as it did before.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._waiting = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Let a signal break off the block, which may wait for ever.

        Raises:
            KeyboardInterrupt: a signal came, in the block or before.
        """
        before, self._waiting = self._waiting, True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])
        if self._waiting:
            raise KeyboardInterrupt


def was_interrupted(error: BaseException | None) -> bool:
    """Say whether a KeyboardInterrupt is behind an error: extension modules hide it so."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
