"""The stun: for a moment a machine does no I/O, and what it has begun is finished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StunGate:
    """Many may be inside :meth:`io` together; inside :meth:`stun` one is alone.

    A stun that waits goes first, so that a busy guest cannot hold it off for ever. Not reentrant.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._stuns = 0
        self._alone = False

    @contextmanager
    def io(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._stuns == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def stun(self) -> Iterator[None]:
        with self._changed:
            self._stuns += 1
            self._changed.wait_for(lambda: self._inside == 0 and not self._alone)
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._stuns -= 1
                self._changed.notify_all()
