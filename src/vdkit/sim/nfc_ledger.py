"""What one data port holds for its clients: bytes of requests, and connections, each with a limit.

A host has one memory for all its NFC sessions (our NFC specification, section 13.2). A request takes its
size when it has come and gives it back when it has been answered; one that does not fit is refused.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit, and for memory no count either, since counting costs speed."""

    memory: int | None = None
    connections: int | None = None


class Ledger:
    """The books of one host. ``limits`` may be replaced at any time. Any thread may call."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        #: Bytes now, at most so far, and of all requests so far; requests that did not fit.
        self.memory = 0
        self.memory_peak = 0
        self.memory_total = 0
        self.memory_refused = 0
        #: Connections now and at most so far; those turned away.
        self.connections = 0
        self.connections_peak = 0
        self.connections_refused = 0

    @property
    def counting(self) -> bool:
        """True if requests are to be counted."""
        return self.limits.memory is not None

    def take(self, size: int) -> bool:
        """Memory for a request that has come; False if there is not enough, and then none is taken."""
        with self._lock:
            limit = self.limits.memory
            if limit is not None and self.memory + size > limit:
                self.memory_refused += 1
                return False
            self.memory += size
            self.memory_total += size
            self.memory_peak = max(self.memory_peak, self.memory)
            return True

    def give(self, size: int) -> None:
        """The request has been answered, or its session has ended."""
        with self._lock:
            self.memory -= size

    def fits(self, size: int) -> bool:
        """True if a session with buffers of that size could have them now. Nothing is taken."""
        with self._lock:
            return self.limits.memory is None or self.memory + size <= self.limits.memory

    def connect(self) -> bool:
        """Count a connection; False if there are too many already."""
        with self._lock:
            limit = self.limits.connections
            if limit is not None and self.connections >= limit:
                self.connections_refused += 1
                return False
            self.connections += 1
            self.connections_peak = max(self.connections_peak, self.connections)
            return True

    def disconnect(self) -> None:
        with self._lock:
            self.connections -= 1
