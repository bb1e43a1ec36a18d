"""What a job tells while it runs; the command line shows it, a program may log it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vdkit.disklib.remote import Retry
from vdkit.errors import VixError


class Observer(Protocol):
    """Calls come from the job's own thread or one at a time from its workers; they must return quickly."""

    def step(self, text: str) -> None:
        """A phase begins: "snapshot", "disk 2000: reading"."""

    def note(self, text: str) -> None:
        """A fact worth keeping: why a full backup is made, which leftovers were removed."""

    def warning(self, text: str) -> None:
        """Something the operator should look at; the job goes on."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of ``what``."""


class SilentObserver:
    """Tells nobody."""

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...


def retry_told_to(observer: Observer, sleep: Callable[[float], None]) -> Retry:
    """How remote disks come back in a job: the observer hears of every attempt, ``sleep`` waits for it.

    It hears too why a disk waits for its turn at a busy host.
    """

    def tell(error: VixError, seconds: float) -> None:
        observer.warning(f"{error.message}; trying again in {seconds:.1f} s")

    return Retry(notify=tell, sleep=sleep, waiting=observer.note)
