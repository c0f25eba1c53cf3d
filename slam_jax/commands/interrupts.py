"""Ctrl-C and SIGTERM while XLA compiles or computes: Python's handlers wait until C++ returns."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from slam_jax.training.stop_request import StopRequest


@contextmanager
def heard_at_once(way_on: str = "") -> Iterator[None]:
    """Inside, a second Ctrl-C or SIGTERM ends the process at once with exit code 130, whatever
    runs; a first one does where a training loop has nothing to save yet.

    All that a command writes is whole or not there, whenever that is. Not for notebooks, which
    would lose their process.

    Args:
      way_on: what is said then; "": nothing.
    """
    ours, handlers = socket.socketpair()
    handlers.setblocking(False)
    # What the system calls, whichever thread computes; it needs no Python.
    before = signal.set_wakeup_fd(handlers.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=[ours, way_on], daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        handlers.close()  # which ends the thread
        listener.join()
        ours.close()


def _listen(ours: socket.socket, way_on: str) -> None:
    asked = False
    while number := ours.recv(1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        loop = signal.getsignal(number[0])
        if asked or isinstance(loop, StopRequest) and loop.is_harmless:
            if way_on:
                print(f"\n{way_on}", file=sys.stderr, flush=True)
            os._exit(130)
        asked = True
        if isinstance(loop, StopRequest):
            loop.tell()
