"""Threads with a lifetime: a scope joins what it started, and its first error cancels the rest.

The same idea as trio's nursery, with threads: leaving the ``with`` block means that no thread of it is alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self

from vdkit.errors import Cancelled

P = ParamSpec("P")


class CancelToken:
    """A request to stop, visible to any thread. A token with a ``parent`` is cancelled with it."""

    def __init__(self, parent: CancelToken | None = None) -> None:
        # Reentrant: a signal handler may cancel while its thread is cancelling.
        self._lock = threading.RLock()
        self._event = threading.Event()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next_key = 0
        self._unsubscribe = parent.subscribe(self.cancel) if parent is not None else None

    def cancel(self) -> None:
        """Ask everybody to stop; more than once is fine; from any thread."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`~vdkit.errors.Cancelled` if a stop was asked for."""
        if self._event.is_set():
            raise Cancelled("cancelled")

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds`` or until cancelled; True if cancelled."""
        return self._event.wait(seconds)

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once on cancellation (at once if it has happened); returns the way to undo it.

        The callback runs in the thread that cancels, so it must be short and must not raise.
        """
        with self._lock:
            fire = self._event.is_set()
            key = self._next_key
            self._next_key += 1
            if not fire:
                self._callbacks[key] = callback
        if fire:
            callback()
        return lambda: self._forget(key)

    def detach(self) -> None:
        """Stop following the parent: a token that outlives its use must not pile up there."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _forget(self, key: int) -> None:
        with self._lock:
            self._callbacks.pop(key, None)


class WorkerScope:
    """``with WorkerScope("copy") as scope: scope.spawn(work, ...)``: leaving it joins every thread.

    The first error of a worker cancels :attr:`token` and is raised on leaving, unless the block itself failed
    with something other than :class:`Cancelled`. An exception in the block, ``KeyboardInterrupt`` included,
    cancels the workers, joins them and goes on.
    """

    def __init__(self, name: str, cancel: CancelToken | None = None) -> None:
        self._name = name
        self.token = CancelToken(cancel)
        self._lock = threading.Lock()
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        self._error: BaseException | None = None

    def spawn(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``work`` in a thread of this scope."""

        done, begun = threading.Event(), threading.Lock()

        def run() -> None:
            if not begun.acquire(blocking=False):
                return  # given up before it began
            try:
                work(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  carried to the thread that leaves the scope
                self._fail(error)
            finally:
                done.set()

        thread = threading.Thread(target=run, name=f"{self._name}-{len(self._threads)}")
        try:
            thread.start()
            self._threads.append((thread, done))
        except BaseException:
            # An interruption may come when the thread runs already: then it is to be joined like any other.
            if not begun.acquire(blocking=False) and (thread, done) not in self._threads:
                self._threads.append((thread, done))
            raise

    @property
    def error(self) -> BaseException | None:
        """The first failure of a worker so far."""
        return self._error

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            # A worker that merely obeyed the cancellation must not hide the failure behind it.
            if self._error is None or (
                isinstance(self._error, Cancelled) and not isinstance(error, Cancelled)
            ):
                self._error = error
        self.token.cancel()

    def join(self) -> None:
        """Wait for the workers started so far; an interruption cancels them and still waits."""
        interrupted: BaseException | None = None
        for thread, done in list(self._threads):
            while True:
                try:
                    # Python 3.11 takes a thread for finished when its join() is interrupted, so the worker
                    # itself has to say when it is: join() is only for the last few instructions.
                    done.wait()
                    thread.join()
                    break
                except KeyboardInterrupt as error:
                    interrupted = error
                    self.token.cancel()
        if interrupted is not None:
            while any(thread in threading.enumerate() for thread, _ in self._threads):
                time.sleep(0.001)
            raise interrupted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.token.cancel()
        try:
            self.join()
        finally:
            self.token.detach()
        if self._error is not None and (error is None or isinstance(error, Cancelled)):
            raise self._error
