"""Contenders in processes of their own, asked in turns, started in another order each time.

Where a process's memory comes to lie depends on when it was started: on a virtual machine of ours
the first of seven equal ones was up to a fifth slower than the last, in every round. So all are
started anew, each time with another one first, and their rounds are pooled.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

PAUSE_S = 0.003  # so that a contender's spinning threads are asleep in the next one's turn

STARTS = 4

Serve = Callable[..., None]
"""Called with a pipe and a contender's arguments: sends something when it is ready, then something
for each True that it receives, and ends at False."""


def take_turns(
    serve: Serve, contenders: Mapping[str, tuple[Any, ...]], rounds: int, warm_up: int = 0
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Ask each contender once a round, forwards and backwards in turn.

    Args:
        serve: what each process runs.
        contenders: the arguments by name.
        rounds: at least so many, as many after each start.
        warm_up: rounds after each start that do not count.

    Returns:
        What each sent when it was ready, and what it answered, a round each.
    """
    context = multiprocessing.get_context("spawn")
    names = list(contenders)
    ready: dict[str, Any] = {}
    answers: dict[str, list[Any]] = {name: [] for name in names}
    starts = min(STARTS, len(names))
    each = warm_up + math.ceil(rounds / starts)
    for start in range(starts):
        first = start * len(names) // starts
        pipes: dict[str, Connection] = {}
        processes = []
        for name in names[first:] + names[:first]:
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, *contenders[name]))
            process.start()
            theirs.close()
            processes.append(process)
            ready[name] = pipes[name].recv()
        for number in range(each):
            for name in names[:: 1 if number % 2 else -1]:
                time.sleep(PAUSE_S)
                pipes[name].send(True)
                answer = pipes[name].recv()
                if number >= warm_up:
                    answers[name].append(answer)
        for pipe in pipes.values():
            pipe.send(False)
        for process in processes:
            process.join()
    return ready, answers
