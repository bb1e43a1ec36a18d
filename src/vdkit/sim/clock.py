"""Time as the simulated host sees it: real, or moved by hand in tests."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward, and the time of day."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""

    def now(self) -> datetime:
        """The time of day, aware, in UTC."""

    def sleep(self, seconds: float) -> None:
        """Return once that much of this clock's time has passed."""


class SystemClock:
    """The real thing."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ManualClock:
    """Stands still until :meth:`advance`; a sleeper waits for that, so no test waits for real time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._moved = threading.Condition()

    def monotonic(self) -> float:
        with self._moved:
            return self._elapsed

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def advance(self, seconds: float) -> None:
        with self._moved:
            self._elapsed += seconds
            self._moved.notify_all()

    def sleep(self, seconds: float) -> None:
        with self._moved:
            until = self._elapsed + seconds
            self._moved.wait_for(lambda: self._elapsed >= until)
