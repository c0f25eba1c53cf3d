"""Ctrl-C and SIGTERM, as a training loop takes them."""

import signal
import sys
import threading

import jax


class StopRequest:
    """The first Ctrl-C or SIGTERM becomes a flag that the loop reads; the second stops at once.

    Attributes:
      asked: the flag.
      is_harmless: nothing would be lost, nor would other processes wait, if this one ended now.
    """

    def __enter__(self) -> "StopRequest":
        self.asked, self.is_harmless = False, jax.process_count() == 1
        self._untold = threading.Lock()
        self._previous = {s: signal.signal(s, self) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __call__(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self.is_harmless:
            self.tell()

    def tell(self) -> None:
        """Says, once, what becomes of the request; any thread may call it."""
        if self._untold.acquire(blocking=False):
            line = "\nstopping after this step; Ctrl-C again stops at once"
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
