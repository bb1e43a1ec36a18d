"""Says that something in the host changed, to whoever waits for updates."""

from __future__ import annotations

import threading
import time

#: The model may change without telling (a machine used in process): seconds until a waiter looks again.
LOOK_AGAIN = 0.2


class Changes:
    """A counter that only grows, and waiters for it."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._count = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def bump(self) -> None:
        with self._moved:
            self._count += 1
            self._moved.notify_all()

    def count(self) -> int:
        with self._moved:
            return self._count

    def wait(self, seen: int, until: float | None) -> None:
        """Return when the counter is not ``seen`` any more, at ``until`` (monotonic), or to look again."""
        seconds = LOOK_AGAIN if until is None else min(LOOK_AGAIN, until - time.monotonic())
        with self._moved:
            if seconds > 0:
                self._moved.wait_for(lambda: self._count != seen or self._closed, seconds)

    def close(self) -> None:
        """Wake every waiter for good."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
