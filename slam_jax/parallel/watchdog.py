"""Watches the other processes of a run, and ends this one when one of them fails or is lost.

Three threads look, since each way of looking can be blocked by what it looks for. Signs of life
come from JAX's own heartbeats, which run outside Python: a process that compiles, or holds Python's
lock, is alive.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

POLL = 1.0  # seconds between two looks
SILENCE = 15  # looks without an answer of process 0; fewer seconds than half of the heartbeat
RESTART = "the newest checkpoint is kept: start all again with --resume"


class Lookout:
    """This process among the others of the run, from the moment they have joined.

    Args:
      client: of JAX's coordination service.
      index: of this process.
      count: of all processes.
      address: host:port of the service, in process 0.
      heartbeat: seconds without a sign of life after which a process counts as gone.
    """

    def __init__(self, client: Any, index: int, count: int, address: str, heartbeat: float):
        self.index, self.count = index, count
        self._client, self._address, self._heartbeat = client, address, heartbeat
        self._answers, self._leaving, self._ending = 0, threading.Event(), threading.Lock()
        self._passed: Counter[str] = Counter()
        if index:
            _slow_aborts()
        looks = [self._listen, self._count_the_living] + [self._guard] * (index > 0)
        for look in looks:
            threading.Thread(target=look, daemon=True, name=look.__name__).start()

    def barrier(self, name: str, seconds: float) -> None:
        """Waits for all processes; an exception after that time, or when one is lost."""
        self._passed[name] += 1  # a barrier's name serves once
        self._client.wait_at_barrier(f"slam_jax/{name}/{self._passed[name]}", int(seconds * 1000))

    def put(self, key: str, value: str) -> None:
        self._client.key_value_set(f"slam_jax/{key}", value)

    def get(self, key: str, seconds: float) -> str:
        """Waits until some process has put it there."""
        return self._client.blocking_key_value_get(f"slam_jax/{key}", int(seconds * 1000))

    def listed(self, folder: str) -> list[tuple[str, str]]:
        """(key, value) of whatever was put below a folder so far."""
        return self._client.key_value_dir_get(f"slam_jax/{folder}")

    def leave(self) -> None:
        """Stops looking; process 0, whose end the others would take for a loss, waits for them."""
        self._leaving.set()
        if self.index == 0:
            limit = time.monotonic() + 10
            while len(self._living()) > 1 and time.monotonic() < limit:
                time.sleep(0.05)

    def give_up(self, message: str, code: int = 1) -> None:
        """Ends this process, after the others have heard why."""
        self._end(message, f"process {self.index} stopped: {message}", code=code)

    def _end(self, line: str, news: str = "", missing: int = 0, code: int = 1) -> None:
        """Prints a line, tells the others the news, if any, and ends the process; the first of
        several calls does it."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the other call ends the process meanwhile
        say(line)
        if news:
            with suppress(Exception):  # of several messages the first one stays
                self.put("news/first", news)
            with suppress(Exception):
                self.put(f"heard/{self.index}", "")
                if self.index == 0:  # the news would end with process 0
                    self._wait_for("heard", self.count - missing)
        os._exit(code)

    def _wait_for(self, folder: str, count: int) -> None:
        limit = time.monotonic() + 10
        while len(self.listed(folder)) < count and time.monotonic() < limit:
            time.sleep(0.05)

    def _listen(self) -> None:
        """Hears the message of a process that gives up."""
        while not self._leaving.wait(POLL):
            try:
                news = self.listed("news")
            except Exception:
                continue  # the guard knows what to do about a process 0 that does not answer
            self._answers += 1
            if news and not self._leaving.is_set():
                self._end(f"{news[0][1]}; {RESTART}", news[0][1])

    def _count_the_living(self) -> None:
        """Asks for the processes that send heartbeats; JAX answers when all of them have asked."""
        first: dict[int, int] = {}
        while not self._leaving.wait(POLL):
            try:
                living = self._living()
            except Exception:
                continue
            first = first or living
            lost = [i for i in range(self.count) if i not in living or living[i] != first.get(i)]
            if lost and not self._leaving.is_set():
                who = ", ".join(map(str, lost[:5])) + (" and others" if len(lost) > 5 else "")
                news = (
                    f"process {who} is gone (no sign of life for {self._heartbeat:.0f} s); "
                    "the others stop"
                )
                self._end(f"{news}; {RESTART}", news, len(lost))

    def _living(self) -> dict[int, int]:
        """Process -> a number that is another one after a restart."""
        return self._client.get_live_nodes(list(range(self.count)))

    def _guard(self) -> None:
        """Sees that process 0, from which all else is heard, is there.

        Counts looks instead of seconds: a process that was itself held up accuses nobody.
        """
        answers, silent = 0, 0
        while not self._leaving.wait(POLL):
            answers, silent = self._answers, silent + 1 if answers == self._answers else 0
            gone = silent > 1 and not reachable(self._address)
            if (gone or silent >= SILENCE) and not self._leaving.is_set():
                what = "it refuses connections" if gone else f"no answer for {silent * POLL:.0f} s"
                self._end(f"process 0 is gone ({what}); the others stop; {RESTART}")


def _slow_aborts() -> None:
    """Delays the abort of this process by some seconds, in which the guard can speak.

    JAX aborts at once when the connection to process 0 breaks. `sleep` as the handler of SIGABRT
    gets the number of the signal, 6, as its seconds; afterwards the abort goes on.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), None
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def say(line: str) -> None:
    """Prints an error, past whatever Python keeps back, since `os._exit` comes next."""
    with suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"\nerror: {line}\n".encode())  # not at the end of a progress bar


def reachable(address: str) -> bool:
    """Whether the machine at host:port takes connections, or at least does not refuse them."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True
