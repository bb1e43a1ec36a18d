"""Requests that go on while their caller does something else: a few threads per disk.

The threads are started when there is work for them and joined when the disk is closed. What a request fails
with reaches its caller as it is; nothing turns into a cancellation.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from vdkit.block.workers import WorkerScope
from vdkit.errors import Closed, UsageError, VixError

#: Requests of one disk that are worked on at once.
MAX_WORKERS: Final = 4

#: Told how a request ended: None if it went well. Called in a thread of the disk.
Completion = Callable[[VixError | None], None]


class Requests:
    """A queue of requests and the threads that work on them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._scope = WorkerScope("vdkit-disk")
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._waiting: deque[tuple[int, Callable[[], None], Completion | None]] = deque()
        self._workers = self._idle = self._begun = 0
        self._pending: OrderedDict[int, None] = OrderedDict()
        self._mine: set[int] = set()
        self._error: BaseException | None = None
        self._closed = False

    def submit(self, act: Callable[[], None], completion: Completion | None) -> None:
        """Queue a request. Raises Closed."""
        with self._lock:
            if self._closed:
                raise Closed(f"{self._name}: closed")
            if self._idle <= len(self._waiting) and self._workers < MAX_WORKERS:
                # Counted first: if the thread cannot be started, nobody waits for it either.
                self._workers += 1
                try:
                    self._scope.spawn(self._work)
                except BaseException:
                    self._workers -= 1
                    raise
            self._begun += 1
            self._pending[self._begun] = None
            self._waiting.append((self._begun, act, completion))
            self._ready.notify()

    def wait(self) -> None:
        """Until every request begun before has ended. Raises the first error that no completion knows."""
        self.refuse_own_thread("wait")
        with self._lock:
            last = self._begun
            self._ended.wait_for(lambda: next(iter(self._pending), last + 1) > last)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Let what is queued end, then the threads; raises as :meth:`wait`. Twice is fine."""
        self.refuse_own_thread("close")
        with self._lock:
            self._closed = True
            self._ready.notify_all()
        self._scope.join()
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def refuse_own_thread(self, what: str) -> None:
        """Raises UsageError inside a completion, where ``what`` would never return."""
        if threading.get_ident() in self._mine:
            raise UsageError(
                f"{self._name}: {what} from inside a completion would wait for itself",
                remedy="call it from another thread",
            )

    def _work(self) -> None:
        with self._lock:
            self._mine.add(threading.get_ident())
        try:
            while (request := self._next()) is not None:
                self._carry_out(*request)
        finally:
            with self._lock:
                self._mine.discard(threading.get_ident())
                self._workers -= 1

    def _next(self) -> tuple[int, Callable[[], None], Completion | None] | None:
        with self._lock:
            self._idle += 1
            try:
                self._ready.wait_for(lambda: self._waiting or self._closed)
            finally:
                self._idle -= 1
            return self._waiting.popleft() if self._waiting else None

    def _carry_out(self, number: int, act: Callable[[], None], completion: Completion | None) -> None:
        failed: BaseException | None = None
        try:
            failed = _outcome(act)
            if completion is not None:
                told, failed = failed, None
                completion(told)
        except BaseException as error:  # noqa: BLE001  a completion's own failure is told by wait and close
            failed = error
        finally:
            with self._lock:
                if failed is not None and self._error is None:
                    self._error = failed
                del self._pending[number]
                self._ended.notify_all()


def _outcome(act: Callable[[], None]) -> VixError | None:
    try:
        act()
    except VixError as error:
        return error
    except Exception as error:  # noqa: BLE001  a completion is told of failures in one form
        wrapped = VixError(f"the request failed: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        return wrapped
    return None
