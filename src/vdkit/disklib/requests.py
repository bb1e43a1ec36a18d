"""Requests that go on while their caller does something else: a few threads per disk.

The threads are started when there is work for them and joined when the disk is closed. A request can be
cancelled until it has begun. What it fails with reaches its caller as it is: only a request that was
cancelled before it began ends as cancelled.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from vdkit.block.workers import WorkerScope
from vdkit.errors import Cancelled, Closed, UsageError, VixError

#: Requests of one local disk that are worked on at once.
LOCAL_WORKERS: Final = 4
#: The same of one over the network, where each waits for its round trip.
REMOTE_WORKERS: Final = 16

#: Told how a request ended: None if it went well. Called in a thread of the disk.
Completion = Callable[[VixError | None], None]


class Request:
    """One request that was begun; made by :class:`Requests`."""

    __slots__ = ("_act", "_cancelled", "_completion", "_done", "_lock", "number")

    def __init__(
        self, number: int, act: Callable[[], None], completion: Completion | None, lock: threading.Lock
    ) -> None:
        self.number = number
        self._act: Callable[[], None] | None = act
        self._completion = completion
        self._lock = lock
        self._cancelled = self._done = False

    def cancel(self) -> bool:
        """Ask that it does not begin; True if so. Its completion then gets :class:`~vdkit.errors.Cancelled`.

        A request that has begun goes on: nobody could say how much of it was done.
        """
        with self._lock:
            if self._act is None:
                return self._cancelled
            self._cancelled, self._act = True, None
            return True

    @property
    def cancelled(self) -> bool:
        """True if :meth:`cancel` came in time."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """True once it has ended and its completion, if any, has returned."""
        return self._done

    def carry_out(self) -> BaseException | None:
        """Do it in this thread, tell the completion; the error that nobody was told of."""
        with self._lock:
            act, self._act = self._act, None
        failed: BaseException | None = None
        try:
            failed = Cancelled("the request was cancelled before it began") if act is None else _outcome(act)
            completion, self._completion = self._completion, None
            if completion is not None:
                told, failed = failed, None
                completion(told)
            elif act is None:
                failed = None  # who cancels knows
        except BaseException as error:  # noqa: BLE001  a completion's own failure is told by wait and close
            failed = error
        return failed

    def end(self) -> None:
        self._done = True


class Requests:
    """A queue of requests and at most ``workers`` threads that work on them."""

    def __init__(self, name: str, workers: int = LOCAL_WORKERS) -> None:
        self._name = name
        self._limit = workers
        self._scope = WorkerScope("vdkit-disk")
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._waiting: deque[Request] = deque()
        self._workers = self._idle = self._begun = 0
        self._pending: OrderedDict[int, Request] = OrderedDict()
        self._mine: set[int] = set()
        self._error: BaseException | None = None
        self._closed = False

    def submit(self, act: Callable[[], None], completion: Completion | None) -> Request:
        """Queue a request. Raises Closed."""
        with self._lock:
            if self._closed:
                raise Closed(f"{self._name}: closed")
            if self._idle <= len(self._waiting) and self._workers < self._limit:
                # Counted first: if the thread cannot be started, nobody waits for it either.
                self._workers += 1
                try:
                    self._scope.spawn(self._work)
                except BaseException:
                    self._workers -= 1
                    raise
            self._begun += 1
            request = Request(self._begun, act, completion, self._lock)
            self._pending[request.number] = request
            self._waiting.append(request)
            self._ready.notify()
            return request

    def cancel(self) -> int:
        """Cancel every request that has not begun; how many those were."""
        with self._lock:
            waiting = list(self._waiting)
        return sum(not request.cancelled and request.cancel() for request in waiting)

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
                self._carry_out(request)
        finally:
            with self._lock:
                self._mine.discard(threading.get_ident())
                self._workers -= 1

    def _next(self) -> Request | None:
        with self._lock:
            self._idle += 1
            try:
                self._ready.wait_for(lambda: self._waiting or self._closed)
            finally:
                self._idle -= 1
            return self._waiting.popleft() if self._waiting else None

    def _carry_out(self, request: Request) -> None:
        failed: BaseException | None = None
        try:
            failed = request.carry_out()
        finally:
            with self._lock:
                if failed is not None and self._error is None:
                    self._error = failed
                request.end()
                del self._pending[request.number]
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
