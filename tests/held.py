"""A training that waits for its signal: `python held.py CALL ARGUMENTS...` of `mate-edge`.

It is `python -m mate_edge ARGUMENTS` as the leader of its processes, but the CALLth time that it
asks whether to stop, it writes its id to the file `held` in its working folder and goes on only
when a signal has come.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from mate_edge import files
from mate_edge.stop import StopSignal
from mate_edge.train import loop

LONGEST_S = 500  # nobody sends a signal when the test itself was killed


def hold_at(call: int) -> None:
    """Replace what the loop asks after its steps."""
    real, calls = loop.should_stop, 0

    def held(accelerator: Accelerator, stop: StopSignal) -> bool:
        nonlocal calls
        calls += 1
        if calls == call:
            files.write_whole(Path("held"), str(os.getpid()).encode())
            until = time.monotonic() + LONGEST_S
            while stop.received is None and time.monotonic() < until:
                time.sleep(0.01)
        return real(accelerator, stop)

    loop.should_stop = held


if __name__ == "__main__":  # a loader's worker may import this file
    from mate_edge.cli import main

    sys.path[0] = os.getcwd()
    os.setpgrp()  # the workers of its loader are in it too
    hold_at(int(sys.argv.pop(1)))
    main()
