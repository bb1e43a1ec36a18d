"""A point in time by which something must have happened."""

from __future__ import annotations

from time import monotonic


class Deadline:
    """``seconds`` is what was allowed from the start, for messages. One is made for every record."""

    __slots__ = ("at", "seconds")

    def __init__(self, seconds: float, at: float) -> None:
        self.seconds = seconds
        self.at = at

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(seconds, monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - monotonic())

    @property
    def expired(self) -> bool:
        return monotonic() >= self.at
