"""Who holds which file of a datastore, as the host's file system would know it.

Compatible pairs are few: readers of frozen links share with each other, downloads share with each other, a
writer shares with nobody. A download and a disk reader exclude each other, as on a real host (our NFC
specification, section 13.4).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from enum import Enum
from types import TracebackType
from typing import Self

#: Seconds that a caller waits for a file in use, by default.
DEFAULT_PATIENCE = 1.0


class LockMode(Enum):
    """``READ``: a frozen link is read. ``BROWSE``: the file is downloaded. ``WRITE``: it is changed."""

    READ = "read"
    BROWSE = "browse"
    WRITE = "write"


class Locked(Exception):
    """Somebody else holds the file. Stays inside the model, which says it as the caller expects."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"{name} is held by {holder}")
        self.name = name
        self.holder = holder


class FileLock:
    """Files held together; :meth:`release` more than once is fine. A context manager."""

    def __init__(self, table: LockTable, held: list[tuple[str, LockMode, str]]) -> None:
        self._table = table
        self._held = held

    def release(self) -> None:
        self._table._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class LockTable:
    """The locks of one datastore; names are paths in it.

    ``patience`` is how many seconds a caller waits for somebody who is just about to let go, such as a disk
    session whose client has closed it a moment ago: hosts try more than once, too.
    """

    def __init__(self, patience: float = DEFAULT_PATIENCE) -> None:
        self.patience = patience
        self._changed = threading.Condition()
        self._holders: dict[str, list[tuple[LockMode, str]]] = {}

    def acquire(self, wanted: Iterable[tuple[str, LockMode]], holder: str) -> FileLock:
        """All or none. Raises :class:`Locked`."""
        asked = list(wanted)
        with self._changed:
            return self._patiently(lambda: self._take(asked, holder))

    def exchange(self, lock: FileLock, wanted: Iterable[tuple[str, LockMode]], holder: str) -> FileLock:
        """Give ``lock`` up for other files or modes at once; if that fails, ``lock`` is held as before."""
        asked = list(wanted)
        with self._changed:
            return self._patiently(lambda: self._swap(lock, asked, holder))

    def _patiently(self, attempt: Callable[[], FileLock]) -> FileLock:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return attempt()
            except Locked:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise

    def _swap(self, lock: FileLock, asked: list[tuple[str, LockMode]], holder: str) -> FileLock:
        before = list(lock._held)
        self._drop(lock)
        try:
            return self._take(asked, holder)
        except Locked:
            for name, mode, owner in before:
                self._holders.setdefault(name, []).append((mode, owner))
            lock._held = before
            raise

    def holder(self, name: str) -> str | None:
        """Who holds a file, for a message; None if nobody does."""
        with self._changed:
            held = self._holders.get(name)
            return held[0][1] if held else None

    def _take(self, asked: list[tuple[str, LockMode]], holder: str) -> FileLock:
        for name, mode in asked:
            for held, other in self._holders.get(name, ()):
                if held is not mode or mode is LockMode.WRITE:
                    raise Locked(name, other)
        for name, mode in asked:
            self._holders.setdefault(name, []).append((mode, holder))
        return FileLock(self, [(name, mode, holder) for name, mode in asked])

    def _drop(self, lock: FileLock) -> None:
        held, lock._held = lock._held, []
        for name, mode, holder in held:
            holders = self._holders[name]
            holders.remove((mode, holder))
            if not holders:
                del self._holders[name]

    def _release(self, lock: FileLock) -> None:
        with self._changed:
            self._drop(lock)
            self._changed.notify_all()
